// An answer's tokens: one element for all of them. Texts are interpolated by Vue, never parsed as HTML.
export default {
  template: `
    <div class="k-answer" role="listbox" :aria-label="label" :aria-busy="busy ? 'true' : 'false'" tabindex="0"
         :aria-activedescendant="active >= 0 ? idOf(active) : null" @keydown="key" @focus="focused" @click="clicked"
    ><template v-for="(t, i) in rows" :key="i" v-memo="[t, i === chosen, i === active]">{{ lead(t[0]) }}<span role="option" :id="idOf(i)" :data-i="i" :aria-selected="i === chosen ? 'true' : 'false'"
         :class="['k-tok', 'p' + t[1], t[2], { chosen: i === chosen, active: i === active }]" :title="t[3]">{{ t[0].slice(lead(t[0]).length) || "\u00a0" }}</span></template
    ><span v-if="busy" class="k-caret" aria-hidden="true"></span></div>`,
  props: { tokens: Array, label: String, busy: Boolean, picked: Number },
  data() {
    const base = `k${Math.random().toString(36).slice(2)}`; // a token that is not drawn again keeps its id
    return { rows: [...(this.tokens ?? [])], chosen: this.picked ?? -1, active: -1, base };
  },
  watch: {
    tokens(rows) { this.rows = [...rows]; },
    picked(i) { this.chosen = i; },
  },
  methods: {
    // The space before a word is not coloured: it may stand at the end of a line.
    lead(text) { return text.length > 1 && text[0] === " " ? " " : ""; },
    idOf(i) { return `${this.base}-t${i}`; },
    // Tokens from place `start` on; sent twice they land in the same place.
    put(start, rows) { this.rows.splice(start, this.rows.length - start, ...rows); },
    pick(i) {
      if (i < 0 || i >= this.rows.length) return;
      this.active = this.chosen = i;
      this.$emit("pick", i);
    },
    clicked(event) {
      const i = event.target.closest("[data-i]")?.dataset.i;
      if (i !== undefined) this.pick(Number(i));
    },
    focused() { if (this.active < 0 && this.rows.length) this.active = Math.max(0, this.chosen); },
    key(event) {
      const last = this.rows.length - 1;
      const to = { ArrowRight: this.active + 1, ArrowLeft: this.active - 1, Home: 0, End: last }[event.key];
      if (to !== undefined) {
        this.active = Math.min(last, Math.max(0, to));
        this.$nextTick(() => document.getElementById(this.idOf(this.active))?.scrollIntoView({ block: "nearest" }));
      } else if (event.key === "Enter" || event.key === " ") {
        this.pick(this.active);
      } else return;
      event.preventDefault();
    },
  },
};
