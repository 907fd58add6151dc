// Text <-> token ids, as data/tokenizers/: byte pairs (gpt2, bpe, bytes) and characters (chars).
// Bytes are written as a string with one character below U+0100 for each, so that tokens can be keys of a Map.

const encoder = new TextEncoder(), decoder = new TextDecoder("utf-8", { ignoreBOM: true });
const toBytes = (string) => Uint8Array.from(string, (character) => character.charCodeAt(0));
const toString = (bytes) => Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
const utf8 = (text) => toString(encoder.encode(text));

/** The tokenizer of this kind. `tokens` are the bytes of each id, "" for a special token. */
export function build_tokenizer({ kind, tokens, ...rest }) {
  return kind === "chars" ? new CharTokenizer(tokens, rest) : new BytePairTokenizer(tokens, rest);
}

class Tokenizer {
  constructor(tokens, { special_tokens, end_of_text, start_token }) {
    Object.assign(this, { tokens, end_of_text, start_token }); // start_token: what a text without a prompt follows
    this.names = new Map(Object.entries(special_tokens).map(([name, id]) => [id, name]));
    this.ids = new Map(tokens.map((token, id) => [token, id]));
    this.masks = new Map();
  }

  /** {id, text, special}, with `bytes` where the token is only a part of a character, U+FFFD in its text. */
  describe(id) {
    if (this.names.has(id)) return { id, text: this.names.get(id), special: true };
    const bytes = toBytes(this.tokens[id]), text = decoder.decode(bytes);
    return text.includes("\ufffd") ? { id, text, special: false, bytes: [...bytes] } : { id, text, special: false };
  }

  /** Which tokens cannot come next if the text of `ids` is to stay UTF-8: 1 for each of those, (V). */
  forbidden(ids) {
    const begun = representative(ids.slice(-4).map((id) => this.tokens[id]).join(""));
    if (!this.masks.has(begun)) this.masks.set(begun, Uint8Array.from(this.tokens, (token) => !continues(begun, token)));
    return this.masks.get(begun);
  }
}

/** The beginning of a character that these bytes end within, "" if none, or one that the same bytes may follow. */
function representative(bytes) {
  const [begun, first] = /([\xc2-\xf4])[\x80-\xbf]{0,2}$/.exec(bytes) ?? ["", ""];
  if (/^[\xe0\xed\xf0\xf4]$/.test(begun)) return begun; // these restrict the second byte
  const length = first < "\xe0" ? 2 : first < "\xf0" ? 3 : 4; // the first byte says how many there are
  return begun && ["", "\xc3", "\xe1", "\xf1"][length - begun.length];
}

/** Whether the bytes together begin a UTF-8 text. A special token has none, and stands between characters. */
function continues(begun, token) {
  if (begun && !/^[\x80-\xbf]/.test(token)) return false; // only a continuation byte goes on with a character
  try {
    const strict = new TextDecoder("utf-8", { fatal: true });
    strict.decode(toBytes(begun + token), { stream: true }); // the last character may be unfinished
    return true;
  } catch {
    return false;
  }
}

// GPT-2's words: a contraction; letters, digits or other signs, with a space before them; whitespace, of which the
// last goes to the next word. (Unicode's whitespace, as in tiktoken: JavaScript's \s has U+FEFF, and no U+0085.)
const WORD =
  /'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

/** Byte-pair encoding: every byte is a token, and each merge makes a new one of two. No merges: kind bytes. */
class BytePairTokenizer extends Tokenizer {
  encode(text) {
    return [...text.matchAll(WORD)].flatMap(([word]) => this.merge(utf8(word)));
  }

  /** The ids of a word: of all neighbours that are a token together, those with the lowest id merge first. */
  merge(word) {
    const parts = [...word];
    const rank = (i) => (i + 1 < parts.length ? this.ids.get(parts[i] + parts[i + 1]) : undefined) ?? Infinity;
    const ranks = parts.map((_, i) => rank(i)); // of each part with the next
    for (;;) {
      let first = 0;
      for (let i = 1; i < ranks.length; i++) if (ranks[i] < ranks[first]) first = i;
      if (ranks[first] === Infinity) return parts.map((part) => this.ids.get(part));
      parts.splice(first, 2, parts[first] + parts[first + 1]);
      ranks.splice(first, 1);
      ranks[first] = rank(first);
      if (first > 0) ranks[first - 1] = rank(first - 1);
    }
  }
}

/** One id for each character; with byte_fallback, others become the ids of their UTF-8 bytes. */
class CharTokenizer extends Tokenizer {
  constructor(tokens, options) {
    super(tokens, options);
    const bytes = options.byte_fallback ? 256 : 0, count = tokens.length - this.names.size - bytes;
    this.byte_ids = bytes && Array.from({ length: 256 }, (_, byte) => count + byte);
    this.ids = new Map(tokens.slice(0, count).map((token, id) => [token, id]));
  }

  encode(text) {
    return [...text].flatMap((character) => {
      const bytes = utf8(character), id = this.ids.get(bytes);
      if (id !== undefined) return id;
      if (this.byte_ids) return [...bytes].map((byte) => this.byte_ids[byte.charCodeAt(0)]);
      const code = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      const known = `the ${this.ids.size} characters of this tokenizer`;
      throw new Error(`the character ${JSON.stringify(character)} (U+${code}) is not among ${known}; leave it out`);
    });
  }
}
