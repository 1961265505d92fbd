// The page's behaviour: draws the charts in the theme's colours, switches language and theme, saves pictures and data.
const root = document.documentElement;
const data = JSON.parse(document.getElementById("data").textContent);
const drawn = new Map();                       // element of a chart -> ECharts instance

const lang = () => root.dataset.lang;
const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const colour = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
const formats = () => klypeFormats(lang() === "en" ? "en-GB" : lang());
const format = (value, options) => formats().format(value, options);

function revive(value) {
  if (Array.isArray(value)) return value.map(revive);
  if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, revive(v)]));
  if (typeof value !== "string") return value;
  // ECharts writes the family into an attribute as it is: double quotes would end it.
  if (value === "inherit") return getComputedStyle(document.body).fontFamily.replace(/"/g, "'");
  if (value.startsWith("fn:") && formats()[value.slice(3)]) return formats()[value.slice(3)];
  return /^\$[a-z]+$/.test(value) ? colour(value.slice(1)) || value : value;
}

// What a narrow screen needs: room for a second line of legend, fewer numbers on the axis of shares.
function adapt(option, width) {
  if (width >= 480) return option;
  if (option.legend?.show && (option.legend.data?.length ?? 0) > 2) option.grid.top += 22;
  if (option.xAxis?.interval === 0.25) option.xAxis.interval = 0.5;
  return option;
}

function draw(figure) {
  const picture = data.charts[lang()][figure.dataset.picture];
  figure.querySelectorAll(".chart").forEach((element, i) => {
    drawn.get(element)?.dispose();
    const chart = echarts.init(element, null, { renderer: "svg" });
    chart.setOption(adapt(revive(picture.panels[i].option), element.clientWidth));
    drawn.set(element, chart);
  });
  const sliders = figure.querySelector("[data-formula]");
  if (sliders) redrawFormula(sliders);
}

const visiblePictures = () => [...document.querySelectorAll(`.view[data-view="${lang()}"] [data-picture]`)];
const drawAll = () => visiblePictures().forEach(draw);

// The language is kept where this browser lets a page keep something, and in the address, which a reload keeps: a file
// opened from disk may have no storage of its own.
function setLanguage(code) {
  root.dataset.lang = root.lang = code;
  drawAll();
  mark();
}

function keepLanguage(code) {
  const place = location.hash.match(/^#(section-.*)-/);
  history.replaceState(null, "", `#${place ? `${place[1]}-` : ""}${code}`);
  try { localStorage.setItem("klype-language", code); } catch { /* the address has it */ }
}

function wantedLanguage() {
  let kept = null;
  try { kept = localStorage.getItem("klype-language"); } catch { /* nothing is kept here */ }
  const wishes = navigator.languages.map((wish) => data.spoken[wish.toLowerCase().split("-")[0]]);
  return [location.hash.split(/[#-]/).pop(), kept, ...wishes].find((code) => code in data.charts) ?? lang();
}

// What is wider than its box says so: a phone shows a part of a table or of a tree.
function mark() {
  document.querySelectorAll(".scroll, .panel").forEach((box) => box.classList.toggle("cut", box.scrollWidth > box.clientWidth + 1));
}

// ---- the article's formula ------------------------------------------------------------------------------------
// The slider for S is logarithmic in 1 − S: 0 is S = 0, 5 is S = 0.99999.
function redrawFormula(box) {
  const s = 1 - 10 ** -box.querySelector('[data-in="s"]').value;
  const n = Number(box.querySelector('[data-in="n"]').value);
  const words = data.words[lang()];
  const digits = Math.max(1, Math.ceil(Number(box.querySelector('[data-in="s"]').value)) - 1);
  const small = (p) => p < 1e-4 ? words.zero : format(p, { style: "percent", maximumFractionDigits: p > 0.99 ? 3 : 1 });
  const say = (name, text) => { box.querySelector(`[data-out="${name}"]`).textContent = text; };
  say("s", format(s, { style: "percent", maximumFractionDigits: digits }));
  say("n", format(n));
  say("right", small(s ** n));
  say("article", small((1 - s) ** n));
  const half = s > 0 ? Math.log(0.5) / Math.log(s) : 1;
  say("half", words.half.replace("{n}", format(Math.ceil(half))));
  const points = Array.from({ length: Math.min(n, 200) }, (_, i) => Math.round(1 + i * (n - 1) / Math.max(1, Math.min(n, 200) - 1)));
  drawn.get(box.closest("figure").querySelector(".chart"))?.setOption({
    xAxis: { max: n },
    series: [{ data: points.map((i) => [i, s ** i]) }, { data: points.map((i) => [i, (1 - s) ** i]) }],
  });
}

document.querySelectorAll("[data-formula]").forEach((box) => {
  box.addEventListener("input", () => redrawFormula(box));
  box.querySelectorAll("[data-preset]").forEach((button) => button.addEventListener("click", () => {
    const model = button.dataset.preset === "model";
    const s = model ? Number(box.dataset.modelS) : 0.99999;
    box.querySelector('[data-in="s"]').value = String(Math.min(6, -Math.log10(Math.max(1e-6, 1 - s))));
    box.querySelector('[data-in="n"]').value = model ? "50" : "100";
    redrawFormula(box);
  }));
});

// ---- saving ---------------------------------------------------------------------------------------------------
function save(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// A text in lines of at most so many characters (a longer word has a line of its own).
function lines(text, most) {
  return text.trim().split(/ +/).reduce((found, word) => {
    const last = found.length - 1;
    if (last >= 0 && found[last].length + 1 + word.length <= most) found[last] += " " + word;
    else found.push(word);
    return found;
  }, []);
}

// All panels of a picture under its title, as one SVG with the theme's background.
function svgOf(figure) {
  const panels = [...figure.querySelectorAll(".panel")];
  const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
  const width = Math.max(...panels.map((p) => p.querySelector(".chart").clientWidth)) + 32;
  let y = 28;
  const font = `font-family="sans-serif" fill="${colour("ink")}"`;
  const parts = [];
  for (const line of lines(figure.querySelector("h3").textContent, (width - 32) / 10)) {
    parts.push(`<text x="16" y="${y}" ${font} font-size="15" font-weight="600">${escape(line)}</text>`);
    y += 20;
  }
  for (const panel of panels) {
    const title = panel.querySelector("h4");
    if (title) { parts.push(`<text x="16" y="${y + 12}" ${font} font-size="12">${escape(title.textContent)}</text>`); y += 20; }
    const svg = drawn.get(panel.querySelector(".chart")).renderToSVGString();
    parts.push(svg.replace("<svg ", `<svg x="16" y="${y}" `));
    y += panel.querySelector(".chart").clientHeight + 16;
  }
  return { width, height: y, text: `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${y}" viewBox="0 0 ${width} ${y}"><rect width="100%" height="100%" fill="${colour("card")}"/>${parts.join("")}</svg>` };
}

function png(svg) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => {
      const canvas = document.createElement("canvas");
      canvas.width = svg.width * 2;
      canvas.height = svg.height * 2;
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => blob ? resolve(blob) : reject(new Error("no picture")), "image/png");
    };
    image.onerror = reject;
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(svg.text);
  });
}

// Cells that a spreadsheet would take for a formula are quoted as text.
const cell = (value) => {
  if (value === null || value === undefined) return "";
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? "'" + value : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
};

const savers = {
  svg: async (figure) => new Blob([svgOf(figure).text], { type: "image/svg+xml" }),
  png: async (figure) => png(svgOf(figure)),
  csv: async (_, picture) => new Blob(["\ufeff" + [picture.columns, ...picture.rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n"], { type: "text/csv" }),
  json: async (_, picture) => new Blob([JSON.stringify({ title: picture.title, columns: picture.columns, rows: picture.rows }, null, 1)], { type: "application/json" }),
};

// ---- what is clicked ------------------------------------------------------------------------------------------
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.setLang) { setLanguage(button.dataset.setLang); keepLanguage(button.dataset.setLang); }
  if ("toggleTheme" in button.dataset) { root.dataset.theme = dark() ? "light" : "dark"; drawAll(); }
  if ("print" in button.dataset) window.print();
  if (button.dataset.save) {
    const figure = button.closest("[data-picture]");
    const picture = data.charts[lang()][figure.dataset.picture];
    save(`${figure.dataset.picture}.${button.dataset.save}`, await savers[button.dataset.save](figure, picture));
  }
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

// Printing is on white: the style sheet has light colours there, the charts follow.
let themeBeforePrint;
addEventListener("beforeprint", () => {
  themeBeforePrint = root.dataset.theme;
  root.dataset.theme = "light";
  document.querySelectorAll("details.explained").forEach((details) => { details.open = true; });
  root.dataset.printing = "true";              // the width of a sheet, so that charts are drawn to fit it
  drawAll();
});
addEventListener("afterprint", () => {
  delete root.dataset.printing;
  if (themeBeforePrint) root.dataset.theme = themeBeforePrint; else delete root.dataset.theme;
  drawAll();
});
let resizing;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => { drawn.forEach((chart, element) => { if (element.clientWidth) chart.resize(); }); mark(); }, 120);
});

document.addEventListener("toggle", mark, true);
setLanguage(wantedLanguage());
root.dataset.ready = "true";
