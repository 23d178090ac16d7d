// The page that asks: reads the form, calls the typed API, shows the answer. Texts of callers and servers become
// text nodes only, never markup. Offsets of the API are code points, those of JavaScript UTF-16 units.

const EXAMPLES = {
  "question-answering": [
    ["The mill", "When was the mill built?",
      "The old mill stands on the river Aller near Celle. It was built in 1735."],
    ["Emoji in the text", "Who won the final?",
      "🎉🎉 What a night 👨‍👩‍👧! Zoë Müller won the final in Köln 🏆, three sets to one, before 12,000 people."],
    ["A longer text", "Why are most weights left out?",
      "Large language encoders are slow on ordinary processors. Pruning removes the weights that matter least, and a " +
      "pruned weight costs neither memory nor time if the program skips it. Most weights are left out because a " +
      "network learns to do without them.\n\nWhat remains is rounded to eight bits, so that one instruction multiplies " +
      "many of them at once. The model is trained again after each step, with its dense ancestor as the teacher."],
  ],
  "text-classification": [
    ["Praise", "", "A warm, funny and deeply moving film."],
    ["Complaint", "", "I waited two hours for a cold meal, and nobody apologised."],
    ["Mixed", "", "The actors are wonderful; the story, alas, is not."],
  ],
  "token-classification": [
    ["A visit", "", "Angela Merkel visited Siemens in Munich on Tuesday."],
    ["Two women", "", "Marie Curie moved from Warsaw to Paris, where Irène Joliot-Curie was born."],
    ["Emoji in the text", "", "🎾 Serena Williams beat Naomi Osaka in Melbourne, said Reuters. 🏆"],
  ],
};
const TEXT_LABELS = {
  "question-answering": "Text that holds the answer",
  "text-classification": "Text to classify",
  "token-classification": "Text to search for names",
};
const STAGES = { door: "turn", queue: "wait", tokenize: "tokens", infer: "model", post: "answer", rest: "network and browser" };
const METRICS = { f1: "F1", entity_f1: "entity F1", accuracy: "accuracy" };
const HUES = 8;

const $ = (id) => document.getElementById(id);
const task = () => document.querySelector("input[name=task]:checked").value;
let models = [];
let running = null; // the AbortController of the request in flight

/** Make an element with properties and children; strings become text nodes. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// ---- models -------------------------------------------------------------------------------------------------------

function headers() {
  const key = $("key").value.trim();
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

async function loadModels() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) return showProblem(response.status, response.headers, await readJson(response));
    models = (await response.json()).models;
    $("problem").hidden = true;
  } catch (error) {
    showUnreachable(error);
  }
  showModels();
}

function showModels() {
  const able = models.filter((model) => model.task === task());
  const before = $("model").value;
  $("model").replaceChildren(...able.map((model) => make("option", { value: model.name }, model.name)));
  if (able.some((model) => model.name === before)) $("model").value = before;
  else $("model").value = (able.find((model) => model.default) ?? able[0])?.name ?? "";
  $("about").hidden = !able.length;
  showFacts();
}

function showFacts() {
  const model = models.find((one) => one.name === $("model").value);
  const facts = model ? factsOf(model) : [];
  $("facts").replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

function factsOf(model) {
  const facts = [];
  if (model.sparsity !== null) facts.push(["zeros", percent(model.sparsity)]);
  if (model.bytes !== null) facts.push(["size", sizeOf(model)]);
  if (model.quality) facts.push(qualityOf(model.quality));
  const threads = model.threads === 1 ? "1 thread" : `${model.threads} threads`;
  if (model.isa) facts.push(["runs on", model.threads ? `${model.isa}, ${threads}` : model.isa]);
  return facts;
}

function sizeOf(model) {
  const times = model.dense_bytes ? `, ${(model.dense_bytes / model.bytes).toFixed(1)} times smaller than dense` : "";
  return `${(model.bytes / 1e6).toFixed(1)} MB${times}`;
}

function qualityOf({ metric, dense, quantized, dataset, split }) {
  // SQuAD's F1 is in percent by custom, other scores are shares of 1.
  const scored = (value) => (value > 1 ? value : 100 * value).toFixed(1);
  const beside = dense === null ? "" : ` (dense ${scored(dense)})`;
  const value = quantized === null ? "not measured" : scored(quantized);
  return [METRICS[metric] ?? metric, `${value}${beside} on ${dataset} ${split}`];
}

// ---- asking -------------------------------------------------------------------------------------------------------

function bodyOf() {
  const asks = task() === "question-answering";
  const inputs = asks ? { question: $("question").value, context: $("text").value } : $("text").value;
  const model = models.length ? { model: $("model").value } : {};
  return { inputs, ...model, ...(asks ? { parameters: { top_k: Number($("top").value) } } : {}) };
}

async function ask() {
  running?.abort();
  const mine = (running = new AbortController());
  const asked = { task: task(), body: bodyOf(), model: $("model").value };
  const path = `v1/${asked.task}`;
  clear();
  showCurl(path, asked.body);
  busy(true);
  const began = performance.now();
  try {
    const response = await fetch(path, {
      method: "POST", headers: headers(), body: JSON.stringify(asked.body), signal: mine.signal,
    });
    const answer = await readJson(response);
    if (response.ok) showAnswer(asked, answer, response.headers, performance.now() - began);
    else showProblem(response.status, response.headers, answer);
  } catch (error) {
    if (error.name !== "AbortError") showUnreachable(error);
    else if (running === mine) $("status").textContent = "Cancelled.";
  }
  if (running === mine) {
    running = null;
    busy(false);
    if (matchMedia("(max-width: 56rem)").matches) $("result").scrollIntoView(); // there it lies below the form
  }
}

/** Some proxy's page in place of JSON is shown as a problem too. */
async function readJson(response) {
  const text = await response.text();
  try {
    return JSON.parse(text);
  } catch {
    return { detail: text.slice(0, 300) || "The answer was empty." };
  }
}

function busy(yes) {
  $("result").setAttribute("aria-busy", String(yes));
  $("send").disabled = yes;
  $("cancel").hidden = !yes;
  if (yes) $("status").textContent = "Asking …";
}

function clear() {
  for (const id of ["problem", "shown", "again"]) $(id).hidden = true;
  for (const id of ["question", "text"]) {
    $(id).removeAttribute("aria-invalid");
    $(`${id}-wrong`).textContent = "";
  }
}

/** The command of what was just asked; the key is named, not shown. */
function showCurl(path, body) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const key = $("key").value.trim() ? ' -H "authorization: Bearer $SPARSELANE_KEY"' : "";
  const url = new URL(path, document.baseURI).href;
  $("curl").textContent = `curl ${url} -H 'content-type: application/json'${key} -d ${quoted(JSON.stringify(body))}`;
}

// ---- problems -----------------------------------------------------------------------------------------------------

function showProblem(status, responseHeaders, problem) {
  const after = responseHeaders.get("retry-after");
  const parts = [make("h3", {}, `${problem.title ?? "The server refused"} (${status})`)];
  const fields = problem.errors ?? [];
  fields.forEach(showAtField);
  if (fields.length > 1) parts.push(make("ul", {}, ...fields.map((f) => make("li", {}, `${f.pointer}: ${f.message}`))));
  else parts.push(make("p", {}, problem.detail ?? problem.error ?? ""));
  if (after) parts.push(make("p", {}, `Try again in ${after} s.`));
  if (problem.request_id) parts.push(make("p", { className: "hint" }, `Request ${problem.request_id}`));
  $("problem").replaceChildren(...parts);
  $("problem").hidden = false;
  $("status").textContent = "";
  $("again").hidden = !$("curl").textContent;
  $("json-box").hidden = true;
  if (status === 401 || status === 403) {
    $("key-box").open = true;
    $("key").focus();
  } else document.querySelector("[aria-invalid=true]")?.focus();
}

/** Mark the field of the form that a JSON pointer means, if one does. */
function showAtField({ pointer, message }) {
  const fields = { "/inputs/question": "question", "/inputs/context": "text", "/inputs": "text" };
  const id = fields[pointer];
  if (!id) return;
  $(id).setAttribute("aria-invalid", "true");
  $(`${id}-wrong`).textContent = message;
}

function showUnreachable(error) {
  $("problem").replaceChildren(make("h3", {}, "No answer"), make("p", {}, `The server could not be reached: ${error.message}.`));
  $("problem").hidden = false;
  $("status").textContent = "";
}

// ---- answers ------------------------------------------------------------------------------------------------------

function showAnswer(asked, answer, responseHeaders, milliseconds) {
  const entries = answer.results[0];
  const text = asked.body.inputs.context ?? asked.body.inputs;
  const show = { "question-answering": showSpans, "text-classification": showLabels, "token-classification": showEntities };
  $("status").textContent = show[asked.task](entries, text, asked);
  showTimes(responseHeaders.get("server-timing") ?? "", milliseconds, answer.usage);
  $("json").textContent = JSON.stringify(answer, null, 2);
  for (const id of ["shown", "again"]) $(id).hidden = false;
  $("json-box").hidden = false;
  const mark = $("marked").querySelector("mark");
  if (mark) $("marked").scrollTop = mark.offsetTop - $("marked").offsetTop - 40;
}

function showSpans(entries, text) {
  const named = (entry) => entry.answer || "no answer in this text";
  $("answers").replaceChildren(...entries.map((entry) => bar(named(entry), entry.score)));
  showMarked(text, entries, (entry) => ({ className: entry === entries[0] ? "best" : "" }));
  return `${entries.length === 1 ? "One answer" : `${entries.length} answers`}; the best: ${named(entries[0])}, ${percent(entries[0].score)}.`;
}

function showLabels(entries) {
  $("answers").replaceChildren(...entries.map((entry) => bar(entry.label, entry.score)));
  $("marked").hidden = true;
  return `${entries[0].label}, ${percent(entries[0].score)}.`;
}

function showEntities(entries, text, asked) {
  const groups = groupsOf(models.find((model) => model.name === asked.model)?.labels ?? [], entries);
  const hue = (entry) => `h${groups.indexOf(entry.entity_group) % HUES}`;
  const row = (entry) => bar(entry.word, entry.score, entry.entity_group);
  $("answers").replaceChildren(...entries.map(row));
  showMarked(text, entries, (entry) => ({ className: hue(entry), group: entry.entity_group }));
  return entries.length ? `${entries.length} found: ${entries.map((entry) => entry.word).join(", ")}.` : "No names in this text.";
}

/** The groups of all labels in their order, so that a group has the same colour in every answer. */
function groupsOf(labels, entries) {
  const all = [...labels.filter((label) => label !== "O").map((label) => label.replace(/^[BI]-/, "")), ...entries.map((e) => e.entity_group)];
  return [...new Set(all)];
}

function bar(what, score, group) {
  const inner = make("span");
  inner.style.width = `${100 * score}%`;
  const name = make("span", { className: "what" }, what, ...(group ? [make("small", {}, `  ${group}`)] : []));
  return make("li", {}, name, make("span", { className: "score" }, percent(score)), make("div", { className: "bar" }, inner));
}

/** Show the text with a <mark> for every part that an entry spans; where spans overlap the better entry, the earlier, wins. */
function showMarked(text, entries, styleOf) {
  const parts = [];
  for (const [start, end, entry] of segments(text, entries)) {
    const part = text.slice(start, end);
    if (!entry) parts.push(part);
    else {
      const { className, group } = styleOf(entry);
      const mark = make("mark", { className }, part);
      if (group) mark.dataset.group = group;
      parts.push(mark);
    }
  }
  $("marked").replaceChildren(...parts);
  $("marked").hidden = false;
}

/** Cut the text at the entries' edges: [start, end, entry or undefined] in UTF-16 units, in order, nothing left out. */
export function segments(text, entries) {
  const places = utf16Places(text);
  const edges = [...new Set([0, text.length, ...entries.flatMap((e) => [places[e.start], places[e.end]])])].sort((a, b) => a - b);
  const result = [];
  for (let i = 0; i + 1 < edges.length; i++) {
    const [start, end] = [edges[i], edges[i + 1]];
    const entry = entries.find((e) => places[e.start] <= start && end <= places[e.end]);
    const last = result.at(-1);
    if (last && entry && last[2] === entry) last[1] = end;
    else result.push([start, end, entry]);
  }
  return result;
}

/** Where each code point begins in UTF-16 units, and behind them the length. */
function utf16Places(text) {
  const places = [];
  let at = 0;
  for (const character of text) {
    places.push(at);
    at += character.length;
  }
  return [...places, at];
}

function showTimes(timing, milliseconds, usage) {
  const stages = [...timing.matchAll(/(\w+);dur=([\d.]+)/g)].map(([, name, value]) => [name, Number(value)]);
  const server = stages.reduce((sum, [, value]) => sum + value, 0);
  stages.push(["rest", Math.max(0, milliseconds - server)]);
  $("stages").replaceChildren(...stages.map(([, value], i) => {
    const part = make("span", { className: `h${i}` });
    part.style.width = `${(100 * value) / milliseconds}%`;
    return part;
  }));
  const entry = (name, value, ...before) => make("div", {}, ...before, make("dt", {}, name), make("dd", {}, value));
  $("times").replaceChildren(
    ...stages.map(([name, value], i) => entry(STAGES[name] ?? name, `${value.toFixed(1)} ms`, make("i", { className: `h${i}` }))),
    entry("together", `${milliseconds.toFixed(1)} ms`),
    entry("read", `${usage.tokens} tokens in ${usage.windows === 1 ? "1 window" : `${usage.windows} windows`}`),
  );
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

// ---- the form -----------------------------------------------------------------------------------------------------

function showTask() {
  const asks = task() === "question-answering";
  $("question-field").hidden = $("top-field").hidden = !asks;
  $("text-label").textContent = TEXT_LABELS[task()];
  $("examples").replaceChildren(...EXAMPLES[task()].map(([name, question, text]) => {
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => {
      $("question").value = question;
      $("text").value = text;
      ask();
    });
    return button;
  }));
  showModels();
}

function chooseTask() {
  running?.abort();
  clear();
  $("status").textContent = "Nothing asked yet.";
  history.replaceState(null, "", `#${task()}`);
  showTask();
}

async function copy() {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText($("curl").textContent);
    $("copy").textContent = "Copied";
    setTimeout(() => ($("copy").textContent = "Copy"), 1500);
  } else getSelection().selectAllChildren($("curl")); // pages without TLS may not write the clipboard
}

function listen() {
  $("ask").addEventListener("submit", (event) => (event.preventDefault(), ask()));
  $("cancel").addEventListener("click", () => running?.abort());
  $("copy").addEventListener("click", copy);
  $("model").addEventListener("change", showFacts);
  $("key").addEventListener("change", loadModels);
  for (const radio of document.querySelectorAll("input[name=task]")) radio.addEventListener("change", chooseTask);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.preventDefault(), ask();
  });
}

const wanted = document.querySelector(`input[name=task][value="${CSS.escape(location.hash.slice(1))}"]`);
if (wanted) wanted.checked = true;
listen();
showTask();
loadModels();
