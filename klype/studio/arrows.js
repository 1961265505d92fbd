(e) => {
  // In a toolbar, which is one stop for the Tab key: from link to link.
  const links = [...e.currentTarget.querySelectorAll("a")], last = links.length - 1;
  const at = links.indexOf(document.activeElement);
  const to = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last}[e.key];
  if (to === undefined) return;
  e.preventDefault();
  links.forEach((link) => { link.tabIndex = -1; });
  Object.assign(links[Math.min(last, Math.max(0, to))], {tabIndex: 0}).focus();
}
