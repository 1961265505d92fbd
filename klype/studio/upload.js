// A file goes up in slices, each when the one before is on the server's disk.
export default {
  template: `
  <div class="w-upload" :class="{ over }" @dragover.prevent="over = true" @dragleave="over = false" @drop.prevent="dropped">
    <label class="k-button"><input type="file" class="w-file" :accept="accept" @change="chosen"><span>{{ label }}</span></label>
    <span class="k-small" role="status" aria-live="polite">{{ text }}</span>
    <progress v-if="file" :value="got" :max="file.size" :aria-label="label"></progress>
  </div>`,
  props: { label: String, slice: Number, accept: String },
  data() { return { file: null, number: 0, got: 0, text: "", over: false }; },
  methods: {
    chosen(event) { const file = event.target.files[0]; event.target.value = ""; if (file) this.begin(file); },
    dropped(event) { this.over = false; const file = event.dataTransfer?.files?.[0]; if (file) this.begin(file); },
    begin(file) {
      this.file = file;
      this.number = Math.floor(Math.random() * 2 ** 31);
      this.got = 0;
      this.text = file.name;
      this.send();
    },
    async send() {
      const file = this.file, number = this.number, at = this.got;
      const bytes = new Uint8Array(await file.slice(at, at + this.slice).arrayBuffer());
      if (number !== this.number) return;
      let text = "";
      for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
      this.$emit("slice", { number, at, size: file.size, name: file.name, data: btoa(text) });
    },
    more(number, got) { if (number === this.number && this.file) { this.got = got; this.send(); } },
    done(number) { if (number === this.number) this.file = null; },
    refused(why) { this.file = null; this.text = why; },
  },
};
