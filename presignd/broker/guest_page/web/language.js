// The language of the page, and sizes, times and dates in it.

/** A new language is a file `words.<name>.js`, and its name here. */
const LANGUAGES = ["en", "de", "ar"];
/** Those written from right to left. */
const LEFTWARDS = ["ar"];

/** @param {readonly string[]} wanted @returns {string} */
export const languageOf = (wanted) =>
  wanted.map((tag) => tag.toLowerCase().split("-")[0]).find((tag) => LANGUAGES.includes(tag)) ?? LANGUAGES[0];

/** @param {string} language @returns {"ltr" | "rtl"} */
export const directionOf = (language) => (LEFTWARDS.includes(language) ? "rtl" : "ltr");

/** @param {readonly string[]} wanted @param {string} language @returns {string} with its region: dates differ by it */
export const localeOf = (wanted, language) => wanted.find((tag) => tag.toLowerCase().split("-")[0] === language) ?? language;

/** @param {string} language @returns {Promise<import("./words.en.js").Words>} */
export const wordsOf = async (language) => (await import(`./words.${language}.js`)).default;

const UNITS = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"];

/** @param {string} locale */
export function formats(locale) {
  /** @param {number} value @param {string} unit @param {number} [digits] */
  const number = (value, unit, digits = 0) => {
    const unitDisplay = unit === "byte" ? "long" : "short"; // the short one has no plural: "4 byte"
    return new Intl.NumberFormat(locale, { style: "unit", unit, unitDisplay, maximumFractionDigits: digits }).format(value);
  };
  return {
    /** @param {number} bytes @returns {string} */
    size(bytes) {
      const power = Math.min(UNITS.length - 1, Math.floor(Math.log10(Math.max(1, bytes)) / 3));
      const value = bytes / 1000 ** power;
      return number(value, UNITS[power], power && value < 100 ? 1 : 0);
    },
    /** @param {number} seconds @returns {string} */
    time(seconds) {
      if (seconds < 90) return number(seconds, "second");
      return seconds < 5400 ? number(Math.round(seconds / 60), "minute") : number(seconds / 3600, "hour", 1);
    },
    /** @param {string} text @returns {string} */
    date: (text) => new Intl.DateTimeFormat(locale, { dateStyle: "long", timeStyle: "short" }).format(new Date(text)),
  };
}
