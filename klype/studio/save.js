// All drawings of an element as one PNG, in the theme's colours. ID and NAME are put in by the server.
(async () => {
  const svgs = [...document.getElementById(ID).querySelectorAll('svg')];
  if (!svgs.length) return;
  const style = getComputedStyle(document.body), paper = style.getPropertyValue('--k-card');
  const sizes = svgs.map(s => s.getBoundingClientRect()), pad = 16;
  const width = Math.max(...sizes.map(b => b.width)) + 2 * pad, height = sizes.reduce((h, b) => h + b.height + pad, pad);
  const canvas = Object.assign(document.createElement('canvas'), {width: 2 * width, height: 2 * height});
  const pen = canvas.getContext('2d');
  pen.scale(2, 2); pen.fillStyle = paper; pen.fillRect(0, 0, width, height);
  let y = pad;
  for (const [i, svg] of svgs.entries()) {
    const copy = svg.cloneNode(true);
    copy.setAttribute('xmlns', 'http://www.w3.org/2000/svg');
    copy.setAttribute('font-family', style.fontFamily.replaceAll('"', "'"));
    const text = new XMLSerializer().serializeToString(copy).replace(/var\((--k-[a-z0-9]+)\)/g, (_, n) => style.getPropertyValue(n).trim());
    const image = new Image();
    image.src = 'data:image/svg+xml;charset=utf-8,' + encodeURIComponent(text);
    await image.decode();
    pen.drawImage(image, pad, y, sizes[i].width, sizes[i].height);
    y += sizes[i].height + pad;
  }
  Object.assign(document.createElement('a'), {href: canvas.toDataURL('image/png'), download: NAME}).click();
})()
