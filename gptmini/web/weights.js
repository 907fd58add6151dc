// The model that lies in an exported page: bytes in a script element, checked, and read into typed arrays.
// export.py writes them. Each byte is a character of windows-1252, the page's encoding, after adding `shift`; what
// HTML would not leave alone (NUL, CR, <, and = itself) is = and the byte plus 64.

const SENTENCE = "the model in this page is damaged: the file was cut off or changed; copy or export it again";

/** {info, config, tokenizer, weights} of the element; throws where it is not what was written. */
export function readModel(element) {
  const bytes = element ? unescapeBytes(element.textContent, Number(element.dataset.shift)) : new Uint8Array();
  if (!bytes.length || crc32(bytes) !== Number(element.dataset.crc32)) throw new Error(SENTENCE);
  element.remove(); // as a text it takes two or three times the memory
  const length = new DataView(bytes.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  const arrays = readArrays(bytes, 4 + length, header.arrays);
  return { ...header, weights: joinScales(arrays), tokenizer: { ...header.tokenizer, tokens: readTokens(arrays) } };
}

function unescapeBytes(text, shift) {
  // windows-1252 has letters of other alphabets from 128 to 159
  const letters = new TextDecoder("windows-1252").decode(Uint8Array.from({ length: 32 }, (_, i) => 128 + i));
  const byteOf = new Uint8Array(65536).map((_, code) => code & 255);
  for (let i = 0; i < 32; i++) byteOf[letters.charCodeAt(i)] = 128 + i;
  const bytes = new Uint8Array(text.length), escape = "=".charCodeAt(0);
  let n = 0;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    bytes[n++] = (code === escape ? byteOf[text.charCodeAt(++i)] - 64 : byteOf[code]) - shift; // modulo 256
  }
  return bytes.subarray(0, n);
}

/** CRC-32 as in zlib, gzip and PNG. */
export function crc32(bytes) {
  const table = Int32Array.from({ length: 256 }, (_, byte) => {
    for (let bit = 0; bit < 8; bit++) byte = (byte >>> 1) ^ (byte & 1 ? 0xedb88320 : 0);
    return byte;
  });
  let crc = -1;
  for (const byte of bytes) crc = (crc >>> 8) ^ table[(crc ^ byte) & 255];
  return ~crc >>> 0;
}

/** The arrays that lie one after another from `start` on: [[name, dtype, shape], ...] says which. */
function readArrays(bytes, start, list) {
  const kinds = { float16: Uint16Array, float32: Float32Array, int8: Int8Array, uint8: Uint8Array, uint16: Uint16Array };
  const found = {};
  for (const [name, dtype, shape] of list) {
    const Kind = kinds[dtype], end = start + shape.reduce((n, size) => n * size, Kind.BYTES_PER_ELEMENT);
    const data = new Kind(bytes.slice(start, end).buffer);
    found[name] = { data: dtype === "float16" ? widen(data) : data, shape };
    start = end;
  }
  return found;
}

/** float16 to float32: a sign, 5 bits of exponent, 10 of fraction. */
function widen(halves) {
  const table = new Float32Array(65536); // of every float16 there is
  for (let half = 0; half < 65536; half++) {
    const exponent = (half >> 10) & 31, fraction = half & 1023;
    const size = exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24;
    table[half] = half < 32768 ? size : -size;
  }
  return Float32Array.from(halves, (half) => table[half]);
}

/** The weights by name; what an int8 weight's rows are multiplied by lies behind it as NAME.scales. */
function joinScales(arrays) {
  for (const name in arrays) arrays[name].scales = arrays[`${name}.scales`]?.data;
  return arrays;
}

/** The bytes of each token, as a string of one character a byte. */
function readTokens({ "tokenizer.lengths": lengths, "tokenizer.bytes": bytes }) {
  let start = 0;
  return Array.from(lengths.data, (length) => String.fromCharCode(...bytes.data.subarray(start, (start += length))));
}
