/** A page that searches a gallery by an image: everything is computed in this browser, nothing is sent. */
import { env } from "onnxruntime-web";
import { nearest, pixelsOf, QueryEncoder, type Encoded } from "./queryEncoder";

/** `gallery/gallery.json` and `gallery/items.json`, as far as they are used here. */
interface Description {
  readonly format: number;
  readonly code_space: string;
  readonly bits: number;
  readonly items: number;
}
interface Items {
  readonly ids: readonly string[];
  readonly classes: readonly string[];
  readonly labels: readonly (readonly number[] | null)[];
  readonly thumbnails: readonly (string | null)[];
}
interface Search {
  readonly encoder: QueryEncoder;
  readonly codes: Uint8Array;
  readonly items: Items;
}

const RESULTS = 10, MAX_BYTES = 100 << 20;
const HEIC = ["heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1"];
const find = <T extends HTMLElement>(id: string) => document.getElementById(id) as T;
const file = find<HTMLInputElement>("file"), video = find<HTMLVideoElement>("video"), camera = find<HTMLButtonElement>("camera");
let latest = 0, preview = "", opening = 0;
let encoding: Promise<Pick<Encoded, "code">> = Promise.resolve({ code: new Uint8Array() }); // a session runs once at a time

function say(text: string, bad = false): void {
  find("status").textContent = text;
  find("status").classList.toggle("bad", bad);
}

const said = (error: unknown) => (error instanceof Error ? error.message : String(error));

async function load(path: string): Promise<Response> {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path} cannot be loaded (status ${answer.status}): copy the whole folder of the demo.`);
  return answer;
}

/** Opens the gallery and the model, whose code spaces must be one. */
async function open(): Promise<Search> {
  const needed = { WebAssembly: "WebAssembly" in self, createImageBitmap: "createImageBitmap" in self,
                   OffscreenCanvas: "OffscreenCanvas" in self, "crypto.subtle (https, or localhost)": self.crypto?.subtle };
  const missing = Object.entries(needed).filter(([, there]) => !there).map(([name]) => name);
  if (missing.length) throw new Error(`This browser, or this address, lacks ${missing.join(", ")}: use a newer browser, and https.`);
  env.wasm.numThreads = 1; // more would take headers that few static hosts send
  const name = document.querySelector<HTMLMetaElement>("meta[name=twinhash-model]")!.content;
  const [about, items, codes, manifest, model] = await Promise.all([
    load("gallery/gallery.json").then((answer) => answer.json() as Promise<Description>),
    load("gallery/items.json").then((answer) => answer.json() as Promise<Items>),
    load("gallery/codes.bin").then((answer) => answer.arrayBuffer()),
    load("model/manifest.json").then((answer) => answer.text()),
    load(`model/${name}`).then((answer) => answer.arrayBuffer()),
  ]);
  if (about.format !== 1 || items.ids.length !== about.items || 8 * codes.byteLength !== about.items * about.bits) {
    throw new Error("The files in gallery/ are not of one export: write the demo again.");
  }
  const encoder = await QueryEncoder.open(manifest, name, model, about.code_space);
  find("about").textContent =
    `${about.items.toLocaleString()} items, codes of ${about.bits} bits; model ${name}, ${(model.byteLength / 1e6).toFixed(1)} MB.`;
  return { encoder, codes: new Uint8Array(codes), items };
}

/** The reason why a file cannot be read here, in words that help; what is not of decoding speaks for itself. */
async function refusal(image: Blob, error: unknown): Promise<string> {
  if (!(error instanceof DOMException && error.name === "InvalidStateError")) return `The image cannot be read (${said(error)}).`;
  const head = new Uint8Array(await image.slice(0, 12).arrayBuffer());
  const text = String.fromCharCode(...head.slice(4));
  if (text.startsWith("ftyp") && HEIC.includes(text.slice(4, 8))) {
    return "This is a HEIC image, which this browser cannot read: use Safari, or save it as JPEG.";
  }
  return image.size ? "This browser reads no image in this file: choose a JPEG, PNG or WebP." : "The file is empty: choose another.";
}

async function search(image: Blob): Promise<void> {
  const mine = ++latest;
  find("results").replaceChildren();
  find("asked").hidden = true;
  say("Computing the code ...");
  try {
    const { encoder, codes, items } = await ready;
    if (image.size > MAX_BYTES) throw new Error(`The file has ${(image.size / 1e6).toFixed(0)} MB: choose one of at most ${MAX_BYTES >> 20} MB.`);
    const times = [performance.now()];
    const pixels = await pixelsOf(image, encoder.metadata.size).catch(async (error: unknown) => {
      throw new Error(await refusal(image, error), { cause: error });
    });
    times.push(performance.now());
    const { code } = await (encoding = encoding.then(() => encoder.encode(pixels), () => encoder.encode(pixels)));
    times.push(performance.now());
    const hits = nearest(code, codes, RESULTS);
    times.push(performance.now());
    if (mine !== latest) return;
    URL.revokeObjectURL(preview);
    preview = URL.createObjectURL(image);
    find<HTMLImageElement>("preview").src = preview;
    find("code").textContent = Array.from(code, (byte) => byte.toString(16).padStart(2, "0")).join("");
    const [read, encode, compare] = times.slice(1).map((time, i) => `${Math.max(1, Math.round(time - times[i]))} ms`);
    find("time").textContent = `${read} to read the image, ${encode} for the code, ${compare} to search`;
    find("asked").hidden = false;
    find("results").append(...hits.map(({ id, distance }) => result(items, id, distance)));
    say(`${hits.length} results, nearest first.`);
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

function result(items: Items, row: number, distance: number): HTMLElement {
  const place = document.createElement("li"), about = make("div", "", "about");
  const labels = items.labels[row]?.map((label) => items.classes[label]) ?? [], thumbnail = items.thumbnails[row];
  if (thumbnail) {
    const image = document.createElement("img");
    image.alt = "";
    image.src = "gallery/thumbs/" + thumbnail;
    place.append(image);
  } else {
    place.append(make("div", "no thumbnail", "none"));
  }
  about.append(make("span", items.ids[row], "id"), make("span", `Distance ${distance} bit${distance === 1 ? "" : "s"}`));
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
