/* Sends pictures that are chosen, dropped or pasted, one after the other, and shows what the model says of each. */
const { kept, trainedOn } = JSON.parse(document.getElementById("facts").textContent);
const list = document.getElementById("answers"), state = document.getElementById("status");
const files = document.getElementById("files"), template = document.getElementById("answer");
const SHOWN_BARS = 5;
const waiting = [];
let done = 0, isBusy = false;

function element(name, { text = "", ...rest } = {}, ...children) {
  const made = Object.assign(document.createElement(name), { textContent: text }, rest);
  made.append(...children);
  return made;
}

function percent(share) {
  return share > 0 && share < .001 ? "< 0.1%" : `${(100 * share).toFixed(1)}%`;
}

function add(given) {
  const cards = [...given].map((file) => {
    const card = template.content.firstElementChild.cloneNode(true);
    card.querySelector("h2").textContent = file.name || "pasted picture";
    card.querySelector(".said").textContent = "…";
    waiting.push([file, card]);
    return card;
  });
  list.prepend(...cards);
  answerAll();
}

async function answerAll() {
  if (isBusy) return;
  isBusy = true;
  done = 0;
  while (waiting.length) {
    const [file, card] = waiting.shift();
    state.textContent = `${file.name}: being answered, ${waiting.length} more to come.`;
    let said;
    try {
      said = await ask(file);
    } catch (error) {
      said = { error: navigator.onLine === false || error instanceof TypeError
        ? "The page's server does not answer, or the file cannot be read; is the command still running?"
        : String(error.message ?? error) };
    }
    show(card, said);
    card.dataset.done = said.error ? "failed" : "answered";
    done += 1;
    state.textContent = `${file.name}: ${card.querySelector(".said").textContent}` +
      (waiting.length ? "" : done > 1 ? ` All ${done} are done.` : "");
  }
  isBusy = false;
}

async function ask(file) {
  const response = await fetch("answer", {
    method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file,
  });
  if (response.headers.get("content-type")?.startsWith("application/json")) return response.json();
  throw new Error(`The page's server says: ${response.status} ${response.statusText}`);
}

function show(card, said) {
  const sentence = card.querySelector(".said");
  if (said.error) {
    sentence.classList.add("failed");
    sentence.textContent = said.error;
    return;
  }
  const [likeliest] = said.probabilities;
  sentence.replaceChildren(element("b", { text: said.label }), ` ${percent(likeliest.probability)}`);
  card.querySelector(".doubts").append(...said.doubts.map((text) => element("p", { text, className: "verdict" })));
  card.querySelector(".seen").append(
    figure(said.square, "the picture as the network sees it", "as the network sees it"),
    ...(said.heat ? [figure(said.heat, `where it sees ${said.label}`, `the brighter, the more it speaks for ${said.label}`)] : []),
  );
  const bars = card.querySelector(".bars");
  bars.append(barList(said.probabilities.slice(0, SHOWN_BARS)));
  const rest = said.probabilities.slice(SHOWN_BARS);
  if (rest.length) bars.append(element("details", {}, element("summary", { text: `${rest.length} more` }), barList(rest)));
  if (said.neighbours.length) {
    const of = kept < trainedOn ? `${kept} of the ${trainedOn} training pictures` : "the training pictures";
    card.querySelector(".near").append(
      element("h3", { text: `The nearest of ${of}, and how similar they are` }),
      element("div", {}, ...said.neighbours.map((one) => neighbour(one, said.label))),
    );
  }
}

function figure(src, alt, caption) {
  return element("figure", {}, element("img", { src, alt }), element("figcaption", { text: caption }));
}

function barList(probabilities) {
  return element("ul", {}, ...probabilities.map(({ label, probability }) => {
    const bar = element("i");
    bar.style.width = `${100 * probability}%`;
    const track = element("span", { className: "track", ariaHidden: "true" }, bar);
    return element("li", {}, element("span", { text: label }), track, element("span", { text: percent(probability) }));
  }));
}

function neighbour({ label, path, similarity, picture }, predicted) {
  const caption = element("figcaption", {}, element("b", { text: label }), ` ${similarity.toFixed(2)}`);
  const image = element("img", { src: picture, alt: `a training picture labelled ${label}`, title: path });
  return element("figure", { className: label === predicted ? "" : "other" }, image, caption);
}

files.addEventListener("change", () => {
  add(files.files);
  files.value = "";
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) add(event.clipboardData.files);
});
/* Entering a child leaves its parent, so that enters and leaves are counted. */
let entered = 0;
function drag(change) {
  entered = change ? Math.max(entered + change, 0) : 0;
  document.body.classList.toggle("dragging", entered > 0);
}
document.addEventListener("dragenter", () => drag(1));
document.addEventListener("dragleave", () => drag(-1));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drag(0);
  if (event.dataTransfer.files.length) add(event.dataTransfer.files);
  else state.textContent = "What was dropped is no file; drop a picture file.";
});
