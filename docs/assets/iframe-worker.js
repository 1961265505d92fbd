// A page that is read from a disk may not start a worker, which the search is: it runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      inside.document.open();
      inside.document.write("<script>postMessage = message => parent.postMessage(message, '*');" +
        "importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise(loaded => {" +
        "const script = document.createElement('script'); script.src = url; script.onload = loaded;" +
        "document.body.append(script)})), Promise.resolve());<\/script>" +
        `<body><script src="${url}"><\/script>`);
      inside.document.close();
      this.ready = new Promise(loaded => this.frame.addEventListener("load", loaded, { once: true }));
      addEventListener("message", event => {
        if (event.source !== inside) return;
        const heard = new MessageEvent("message", { data: event.data });
        this.dispatchEvent(heard);
        if (this.onmessage) this.onmessage(heard);
      });
    }
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
