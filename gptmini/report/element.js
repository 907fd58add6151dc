/** An HTML element with attributes and children; a child that is a string becomes text, never HTML. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    // A custom property is set, not written as a style attribute, which a Content-Security-Policy may forbid.
    if (name.startsWith("--")) made.style.setProperty(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}
