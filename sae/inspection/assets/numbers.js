// How numbers are written, like on the server: significant digits, a real minus sign, powers of ten far from one.
const SUPERSCRIPTS = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

export function shown(value, digits = 3) {
  const size = Math.abs(value);
  if (!size || (size >= 1e-3 && size < 1e5)) return String(Number(value.toPrecision(digits))).replace("-", "−");
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  const power = [...exponent.replace("+", "")].map((character) => SUPERSCRIPTS[character]).join("");
  return `${Number(mantissa)}×10${power}`.replace("-", "−");
}
