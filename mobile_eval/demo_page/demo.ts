/** A page that searches a gallery by an image: everything is computed in this browser, nothing is sent. */
import { ImageSearch, type Result } from "./kit/index.js";

const RESULTS = 10, MAX_BYTES = 100 << 20;
const find = <T extends HTMLElement>(id: string) => document.getElementById(id) as T;
const file = find<HTMLInputElement>("file"), video = find<HTMLVideoElement>("video"), camera = find<HTMLButtonElement>("camera");
let latest = 0, preview = "", opening = 0;

function say(text: string, bad = false): void {
  find("status").textContent = text;
  find("status").classList.toggle("bad", bad);
}

const said = (error: unknown) => (error instanceof Error ? error.message : String(error));

/** Opens the gallery and the model, whose code spaces must be one. */
async function open(): Promise<ImageSearch> {
  const model = document.querySelector<HTMLMetaElement>("meta[name=twinhash-model]")!.content;
  const found = await ImageSearch.open("model/", "gallery/", model), { gallery, encoder } = found;
  find("about").textContent = `${gallery.items.ids.length.toLocaleString()} items, codes of ${gallery.bits} bits; ` +
    `model ${model}, ${(encoder.bytes / 1e6).toFixed(1)} MB.`;
  return found;
}

async function search(image: Blob): Promise<void> {
  const mine = ++latest;
  find("results").replaceChildren();
  find("asked").hidden = true;
  say("Computing the code ...");
  try {
    const { encoder, gallery } = await ready;
    if (image.size > MAX_BYTES) throw new Error(`The file has ${(image.size / 1e6).toFixed(0)} MB: choose one of at most ${MAX_BYTES >> 20} MB.`);
    const { code, readMs, encodeMs } = await encoder.encode(image);
    const start = performance.now(), results = gallery.nearest(code, RESULTS), searchMs = performance.now() - start;
    if (mine !== latest) return;
    URL.revokeObjectURL(preview);
    preview = URL.createObjectURL(image);
    find<HTMLImageElement>("preview").src = preview;
    find("code").textContent = Array.from(code, (byte) => byte.toString(16).padStart(2, "0")).join("");
    const [read, encode, compare] = [readMs, encodeMs, searchMs].map((time) => `${Math.max(1, Math.round(time))} ms`);
    find("time").textContent = `${read} to read the image, ${encode} for the code, ${compare} to search`;
    find("asked").hidden = false;
    find("results").append(...results.map(show));
    say(`${results.length} results, nearest first.`);
  } catch (error) {
    if (mine === latest) say(said(error), true);
  }
}

function make(tag: string, text: string, kind = ""): HTMLElement {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = kind;
  return element;
}

function show({ id, distance, labels, thumbnail }: Result): HTMLElement {
  const place = document.createElement("li"), about = make("div", "", "about");
  if (thumbnail) {
    const image = document.createElement("img");
    image.alt = "";
    image.src = thumbnail;
    place.append(image);
  } else {
    place.append(make("div", "no thumbnail", "none"));
  }
  about.append(make("span", id, "id"), make("span", `Distance ${distance} bit${distance === 1 ? "" : "s"}`));
  if (labels.length) about.append(make("small", labels.join(", ")));
  place.append(about);
  return place;
}

function closeCamera(): void {
  opening++;
  for (const track of (video.srcObject as MediaStream | null)?.getTracks() ?? []) track.stop();
  video.srcObject = null;
  find("live").hidden = true;
  camera.hidden = !navigator.mediaDevices;
}

async function openCamera(): Promise<void> {
  const mine = ++opening;
  camera.hidden = true;
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
    if (mine !== opening) return stream.getTracks().forEach((track) => track.stop());
    video.srcObject = stream;
    find("live").hidden = false;
    await video.play();
    say("");
  } catch (error) {
    closeCamera();
    say(`The camera cannot be used (${said(error)}): allow it for this page, or choose an image.`, true);
  }
}

async function takePhoto(): Promise<void> {
  if (!video.videoWidth) return say("The camera shows no image yet: try again.", true);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d")!.drawImage(video, 0, 0);
  const photo = await new Promise<Blob | null>((done) => canvas.toBlob(done, "image/png"));
  closeCamera();
  if (photo) await search(photo);
}

/** Searches by the first image of what was dropped or pasted. */
function take(files: FileList | undefined, how: string): void {
  if (files?.length) void search(files[0]);
  else say(`No file was ${how}: ${how === "dropped" ? "drop" : "copy"} the image itself.`, true);
}

const ready = open();
ready.then(() => {
  file.disabled = camera.disabled = false;
}, (error: unknown) => {
  find("about").textContent = "";
  say(said(error), true);
});
file.onchange = () => {
  if (file.files?.length) void search(file.files[0]);
  file.value = "";
};
camera.hidden = !navigator.mediaDevices;
camera.onclick = () => void openCamera();
find("take").onclick = () => void takePhoto();
find("close").onclick = closeCamera;
addEventListener("dragover", (event) => {
  event.preventDefault();
  find("drop").classList.add("over");
});
addEventListener("dragleave", () => find("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  find("drop").classList.remove("over");
  take(event.dataTransfer?.files, "dropped");
});
addEventListener("paste", (event) => take(event.clipboardData?.files, "pasted"));
