// How the charts of report and studio write numbers in a reader's language, and the shape of an interval.
globalThis.klypeFormats = (locale) => {
  const format = (value, options) => typeof value === "number" ? new Intl.NumberFormat(locale, options).format(value) : value;
  const decimals = (n) => ({ minimumFractionDigits: n, maximumFractionDigits: n });
  // Along an axis, as short as can be: 0, 0.25; 0 %, 25 %.
  const number = (value) => format(value, { maximumSignificantDigits: 4 });
  const percent = (value) => format(value, { style: "percent", maximumFractionDigits: 2 });
  // Measured, all with equally many decimals: 0.052; 47.8 %.
  const value = (measured) => format(measured, Number.isInteger(measured) ? {} : decimals(Math.abs(measured) < 100 ? 3 : 0));
  const share = (measured) => format(measured, { style: "percent", ...decimals(1) });
  const bar = (mark) => mark.value < 0.0005 ? "" : share(mark.value);

  // A 95 % interval: from low to high at a row, with short caps. Data: [low, high, row].
  function whisker(params, api) {
    const [low, y] = api.coord([api.value(0), api.value(2)]);
    const [high] = api.coord([api.value(1), api.value(2)]);
    const style = { stroke: api.visual("color"), lineWidth: 2, opacity: 0.75 };
    const stroke = (x1, y1, x2, y2) => ({ type: "line", shape: { x1, y1, x2, y2 }, style });
    return { type: "group", children: [stroke(low, y, high, y), stroke(low, y - 5, low, y + 5), stroke(high, y - 5, high, y + 5)] };
  }

  return { format, number, percent, value, share, bar, whisker };
};
