export default {
  props: {label: String, further: String, picture: String},
  template: `<div>
    <div ref="box" class="k-scroll" role="region" :aria-label="label" :tabindex="rest ? 0 : null"
      @scroll.passive="look"><slot></slot></div>
    <p v-if="rest" class="k-small k-cut">→ {{ further.replace("{rest}", rest) }}</p></div>`,
  data: () => ({rest: ""}),
  mounted() {
    this.seen = new ResizeObserver(() => this.look());
    [this.$refs.box, ...this.$refs.box.children].forEach(one => this.seen.observe(one));
    this.look();
  },
  updated() { this.look(); },
  unmounted() { this.seen.disconnect(); },
  methods: {
    look() {
      const box = this.$refs.box, end = box.getBoundingClientRect().right + 2;
      if (box.scrollWidth <= box.clientWidth + 2) { this.rest = ""; return; }
      const beyond = [...box.querySelectorAll("thead th")].filter(th => th.getBoundingClientRect().right > end);
      const more = box.scrollLeft + box.clientWidth < box.scrollWidth - 2;
      this.rest = beyond.map(th => th.innerText.trim()).filter(Boolean).join(", ") || (more ? this.picture : "…");
    },
  },
};
