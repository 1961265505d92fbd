// Answers put in order by keys, clicks or dragging. Texts are interpolated by Vue, never parsed as HTML.
export default {
  template: `
  <div class="r-board" :data-turn="turn" :class="{ dragging: drag && drag.moved }">
    <p class="r-status" role="status" aria-live="polite">{{ note || said }}</p>
    <template v-if="open">
      <div class="r-asked"><span class="r-label">{{ labels.question }}</span><p>{{ question }}</p></div>
      <div class="r-columns">
        <section class="r-zone r-pool" data-drop="pool" :aria-label="labels.pool">
          <h2>{{ labels.pool }}</h2>
          <article v-for="id in pool" :key="id" class="r-card" :class="{ long: isLong(id), lifted: isLifted(id) }"
                   :data-card="id" @pointerdown="down($event, id)" @click="clicked($event, id)">
            <button type="button" class="r-key" :aria-label="fill(labels.put, { n: keyOf(id) })">{{ keyOf(id) }}</button>
            <div class="r-text" :tabindex="isLong(id) ? 0 : null" :role="isLong(id) ? 'group' : null" :aria-label="isLong(id) ? fill(labels.answer, { n: keyOf(id) }) : null">{{ textOf(id) }}</div>
          </article>
          <p v-if="!pool.length" class="r-empty">{{ labels.pool_empty }}</p>
        </section>
        <section class="r-zone r-order" :data-drop="'gap:' + groups.length" :aria-label="labels.order">
          <h2>{{ labels.order }}</h2>
          <ol>
            <template v-for="(tier, t) in groups" :key="tier[0]">
              <li class="r-gap" :data-drop="'gap:' + t" :class="{ over: over === 'gap:' + t }" aria-hidden="true"></li>
              <li class="r-tier" :data-drop="'tier:' + t" :class="{ over: over === 'tier:' + t, tied: tier.length > 1 }">
                <span class="r-place">{{ t + 1 }}<small v-if="tier.length > 1">{{ labels.tied }}</small></span>
                <div class="r-tied">
                  <article v-for="id in tier" :key="id" class="r-card" :class="{ long: isLong(id), lifted: isLifted(id) }"
                           :data-card="id" @pointerdown="down($event, id)">
                    <span class="r-key placed">{{ keyOf(id) }}</span>
                    <div class="r-text" :tabindex="isLong(id) ? 0 : null" :role="isLong(id) ? 'group' : null" :aria-label="isLong(id) ? fill(labels.answer, { n: keyOf(id) }) : null">{{ textOf(id) }}</div>
                    <span class="r-tools">
                      <button type="button" :id="'u' + id" :disabled="t === 0 && tier.length === 1" :aria-label="fill(labels.up, { n: keyOf(id) })" :title="fill(labels.up, { n: keyOf(id) })" @click="shift(id, -1, 'u')">↑</button>
                      <button type="button" :id="'d' + id" :disabled="t === groups.length - 1 && tier.length === 1" :aria-label="fill(labels.down, { n: keyOf(id) })" :title="fill(labels.down, { n: keyOf(id) })" @click="shift(id, 1, 'd')">↓</button>
                      <button type="button" :id="'t' + id" :disabled="t === 0" :aria-label="fill(labels.tie, { n: keyOf(id) })" :title="fill(labels.tie, { n: keyOf(id) })" @click="tie(id)">=</button>
                      <button type="button" :aria-label="fill(labels.back, { n: keyOf(id) })" :title="fill(labels.back, { n: keyOf(id) })" @click="take(id)">×</button>
                    </span>
                  </article>
                </div>
              </li>
            </template>
            <li class="r-gap last" :data-drop="'gap:' + groups.length" :class="{ over: over === 'gap:' + groups.length, tie: tying }" aria-hidden="true"></li>
          </ol>
          <p v-if="!groups.length" class="r-empty">{{ labels.order_empty }}</p>
          <p v-else-if="pool.length" class="r-empty">{{ fill(labels.rest, { n: pool.length }) }}</p>
        </section>
      </div>
      <form v-if="writing" class="r-write" @submit.prevent="write">
        <label class="k-field">{{ labels.write_label }}<textarea ref="own" rows="3" maxlength="20000" v-model="own" @input="keep" @keydown.enter.exact.prevent="write" @keydown.esc="writing = false"></textarea></label>
        <div class="k-row"><button class="k-button strong">{{ labels.add }}</button><button type="button" class="k-button" @click="writing = false">{{ labels.cancel }}</button></div>
      </form>
    </template>
    <div class="r-actions">
      <template v-if="open">
        <button type="button" class="k-button strong r-save" :disabled="busy || !groups.length" @click="act('order')">{{ labels.save }} <kbd>↵</kbd></button>
        <button type="button" class="k-button" :disabled="busy" @click="act('none')">{{ labels.none }} <kbd>N</kbd></button>
        <button type="button" class="k-button" :disabled="busy" @click="act('skip')">{{ labels.skip }} <kbd>{{ labels.key_skip }}</kbd></button>
        <button type="button" class="k-button" :disabled="busy || cards.length >= 9" @click="beginWriting">{{ labels.write }} <kbd>{{ labels.key_write }}</kbd></button>
      </template>
      <button type="button" class="k-button" :disabled="busy" @click="act('undo')">{{ labels.undo }} <kbd>{{ labels.key_undo }}</kbd></button>
      <button type="button" class="k-button r-leave" @click="act('leave')">{{ labels.leave }}</button>
    </div>
    <div v-if="drag && drag.moved" class="r-ghost r-card" aria-hidden="true" :style="ghost"><span class="r-key">{{ keyOf(drag.id) }}</span><div class="r-text">{{ textOf(drag.id).slice(0, 300) }}</div></div>
  </div>`,
  props: { labels: Object, store: String, turn: Number, draft: String, question: String, cards: Array, said: String, open: Boolean },
  data() {
    return { groups: [], tying: false, busy: false, note: "", writing: false, own: "", drag: null, over: "", x: 0, y: 0, dragged: false };
  },
  computed: {
    pool() {
      const placed = new Set(this.groups.flat());
      return this.cards.map((c) => c[0]).filter((id) => !placed.has(id));
    },
    ghost() {
      return { left: `${this.x - this.drag.dx}px`, top: `${this.y - this.drag.dy}px`, width: `${this.drag.width}px` };
    },
    place() { return `klype-rank-${this.store}-${this.draft}`; },
  },
  watch: {
    turn() { this.busy = false; this.note = ""; this.writing = false; this.own = ""; this.tying = false; this.restore(); },
    cards() {
      this.busy = false;
      const known = new Set(this.cards.map((c) => c[0]));
      this.groups = this.groups.map((g) => g.filter((id) => known.has(id))).filter((g) => g.length);
    },
    said() { this.note = ""; this.busy = false; },
  },
  mounted() {
    this.keys = (e) => this.key(e);
    document.addEventListener("keydown", this.keys);
    let sitting = this.read(sessionStorage, "klype-rank-sitting");
    if (!sitting) {
      sitting = Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");
      this.put(sessionStorage, "klype-rank-sitting", sitting);
    }
    this.$emit("arrive", { sitting, who: this.read(sessionStorage, "klype-rank-who"), name: this.read(localStorage, "klype-rank-name") });
    if (this.turn) this.restore();
  },
  beforeUnmount() { document.removeEventListener("keydown", this.keys); this.ends?.(); },
  methods: {
    read(storage, name) { try { return storage.getItem(name) ?? ""; } catch { return ""; } },
    put(storage, name, text) { try { text ? storage.setItem(name, text) : storage.removeItem(name); } catch {} },
    fill(text, values) { return text.replace(/\{(\w+)\}/g, (_, k) => values[k]); },
    keyOf(id) { return this.cards.findIndex((c) => c[0] === id) + 1; },
    textOf(id) { return this.cards.find((c) => c[0] === id)?.[1] ?? ""; },
    isLong(id) { return this.textOf(id).length > 500; },
    isLifted(id) { return this.drag?.moved && this.drag.id === id; },
    tierOf(id) { return this.groups.findIndex((g) => g.includes(id)); },

    // What is half done survives reloads and the server's restarts; what is taken back lies there as it was.
    keep() { this.put(sessionStorage, this.place, this.groups.length || this.own ? JSON.stringify({ groups: this.groups, own: this.own }) : ""); },
    restore() {
      this.groups = [];
      try {
        const kept = JSON.parse(this.read(sessionStorage, this.place) || "{}"), known = new Set(this.cards.map((c) => c[0]));
        this.groups = (kept.groups ?? []).map((g) => g.filter((id) => known.has(id))).filter((g) => g.length);
        this.own = String(kept.own ?? "");
        this.writing = !!this.own;
      } catch {}
    },
    setName(name, who) { this.put(localStorage, "klype-rank-name", name); this.put(sessionStorage, "klype-rank-who", who); },
    refused(text) { this.busy = false; this.note = ""; this.$nextTick(() => { this.note = text; }); },

    append(id) {
      if (this.tierOf(id) >= 0) return this.take(id);
      if (this.tying && this.groups.length) this.groups[this.groups.length - 1].push(id);
      else this.groups.push([id]);
      this.tying = false;
      this.changed(id);
    },
    take(id) { this.groups = this.without(id).filter((g) => g.length); this.changed(id); },
    without(id) { return this.groups.map((g) => g.filter((other) => other !== id)); },
    tie(id) {
      const t = this.tierOf(id), rest = this.without(id);
      if (t < 1) return;
      rest[t - 1].push(id);
      this.groups = rest.filter((g) => g.length);
      this.changed(id, "t");
    },
    shift(id, by, tool) {
      const t = this.tierOf(id), rest = this.without(id), alone = !rest[t].length;
      if (alone) rest.splice(t, 1);
      rest.splice(by < 0 ? (alone ? t - 1 : t) : t + 1, 0, [id]);
      this.groups = rest;
      this.changed(id, tool);
    },
    changed(id, tool) {
      this.keep();
      const t = this.tierOf(id);
      this.note = t < 0 ? this.fill(this.labels.said_back, { n: this.keyOf(id) }) : this.fill(this.labels.said_placed, { n: this.keyOf(id), place: t + 1 });
      if (tool) this.$nextTick(() => { const b = document.getElementById(tool + id); (b?.disabled ? b.parentElement.querySelector("button:not([disabled])") : b)?.focus(); });
    },
    clicked(event, id) {
      if (this.dragged) { this.dragged = false; return; }
      if (window.getSelection()?.toString()) return;
      this.append(id);
    },

    act(what) {
      if (this.busy || (what === "order" && !this.groups.length)) return;
      this.busy = true;
      this.$emit("act", { do: what, turn: this.turn, groups: this.groups });
    },
    beginWriting() {
      if (this.cards.length >= 9) return;
      this.writing = true;
      this.$nextTick(() => this.$refs.own?.focus());
    },
    write() {
      const text = this.own.trim();
      if (!text) return;
      this.busy = true;
      this.$emit("act", { do: "write", turn: this.turn, text });
    },
    written() { this.own = ""; this.writing = false; this.keep(); },

    key(e) {
      if (!this.open || e.ctrlKey || e.metaKey || e.altKey || e.isComposing || e.target.closest?.("input,textarea,select,[contenteditable]")) return;
      const k = e.key.toLowerCase(), n = Number(e.key);
      if (Number.isInteger(n) && n >= 1 && n <= this.cards.length) this.append(this.cards[n - 1][0]);
      else if (k === "=") { this.tying = this.groups.length > 0; this.note = this.tying ? this.labels.said_tie : ""; }
      else if (k === "backspace") { const last = this.groups.at(-1)?.at(-1); if (last !== undefined) this.take(last); }
      else if (k === "enter") { if (e.target.closest?.("button,a,summary")) return; this.act("order"); }
      else if (k === "n") this.act("none");
      else if (k === this.labels.key_skip.toLowerCase()) this.act("skip");
      else if (k === this.labels.key_undo.toLowerCase()) this.act("undo");
      else if (k === this.labels.key_write.toLowerCase()) this.beginWriting();
      else return;
      e.preventDefault();
    },

    // Dragging: with a mouse by the whole card, with a finger by its number, so that the page still scrolls.
    down(event, id) {
      this.dragged = false;
      const grip = event.target.closest(".r-key"), touch = event.pointerType !== "mouse";
      if (event.button !== 0 || this.busy || event.target.closest(".r-tools") || (touch && !grip)) return;
      const card = event.currentTarget.getBoundingClientRect();
      this.drag = { id, x: event.clientX, y: event.clientY, dx: event.clientX - card.left, dy: event.clientY - card.top, width: card.width, moved: false };
      const move = (e) => this.move(e), up = () => { this.drop(); this.ends(); }, gone = (e) => { if (e.type !== "keydown" || e.key === "Escape") { this.drag = null; this.over = ""; this.ends(); } };
      const heard = [["pointermove", move], ["pointerup", up], ["pointercancel", gone], ["keydown", gone]];
      this.ends = () => heard.forEach(([name, f]) => window.removeEventListener(name, f));
      heard.forEach(([name, f]) => window.addEventListener(name, f));
    },
    move(e) {
      if (!this.drag) return;
      if (!this.drag.moved && Math.hypot(e.clientX - this.drag.x, e.clientY - this.drag.y) < 7) return;
      this.drag.moved = true;
      window.getSelection()?.removeAllRanges();
      [this.x, this.y] = [e.clientX, e.clientY];
      this.over = this.under(e.clientX, e.clientY);
      if (e.clientY < 90) window.scrollBy(0, -14);
      else if (e.clientY > window.innerHeight - 90) window.scrollBy(0, 14);
    },
    under(x, y) { return document.elementFromPoint(x, y)?.closest("[data-drop]")?.dataset.drop ?? ""; },
    drop() {
      const drag = this.drag, over = this.over;
      this.drag = null;
      this.over = "";
      if (!drag?.moved) return;
      this.dragged = true;
      setTimeout(() => { this.dragged = false; }, 50);
      const [kind, at] = over.split(":"), t = Number(at);
      if (kind === "pool") return this.take(drag.id);
      if (kind !== "gap" && kind !== "tier") return;
      const rest = this.without(drag.id);
      if (kind === "tier") rest[t].push(drag.id);
      else rest.splice(t, 0, [drag.id]);
      this.groups = rest.filter((g) => g.length);
      this.changed(drag.id);
    },
  },
};
