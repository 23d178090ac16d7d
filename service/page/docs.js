// The API reference, drawn from openapi.json: paths with a curl call each, then the schemas they name.

/** Make an element with properties and children; strings become text nodes. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Text in which `parts between backticks` are code. */
const prose = (text) => text.split("`").map((part, i) => (i % 2 ? make("code", {}, part) : part));

/** Resolve a "$ref" into the document; anything else is itself. */
const resolved = (document_, schema) =>
  schema?.$ref ? schema.$ref.split("/").slice(1).reduce((node, key) => node[key], document_) : schema;

/** A schema's type in a few words; named schemas are links to their section. */
function typeOf(schema) {
  if (!schema || !Object.keys(schema).length) return ["anything"];
  if (schema.$ref) {
    const name = schema.$ref.split("/").at(-1);
    return [make("a", { href: `#schema-${name}` }, name)];
  }
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.flatMap((choice, i) => [...(i ? [" or "] : []), ...typeOf(choice)]);
  if ("const" in schema) return [JSON.stringify(schema.const)];
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(" or ")];
  if (schema.type === "array") return ["list of ", ...typeOf(schema.items)];
  return [[].concat(schema.type ?? "anything").join(" or ")];
}

function limitsOf(schema) {
  const parts = [];
  for (const one of [schema, ...(schema.anyOf ?? [])]) {
    if ("minimum" in one) parts.push(`at least ${one.minimum}`);
    if ("maximum" in one) parts.push(`at most ${one.maximum}`);
  }
  if ("default" in schema) parts.push(`default ${JSON.stringify(schema.default)}`);
  return parts.join(", ");
}

function fieldTable(schema) {
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) => {
    const notes = [field.description, limitsOf(field)].filter(Boolean).join("; ");
    return make("tr", {},
      make("td", {}, make("code", {}, name), required.has(name) ? "" : make("span", { className: "hint" }, " optional")),
      make("td", {}, ...typeOf(field)), make("td", {}, ...prose(notes)));
  });
  const head = make("tr", {}, ...["field", "type", ""].map((text) => make("th", { scope: "col" }, text)));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
}

function curlOf(path, method, schema, example) {
  const url = new URL(path.slice(1), document.baseURI).href;
  if (method === "get") return `curl ${url}`;
  const body = example ?? schema?.examples?.[0];
  const data = body === undefined ? "" : ` -d '${JSON.stringify(body).replaceAll("'", "'\\''")}'`;
  return `curl ${method === "post" ? "" : `-X ${method.toUpperCase()} `}${url} -H 'content-type: application/json'${data}`;
}

function operationSection(document_, path, method, operation) {
  const json = operation.requestBody?.content?.["application/json"];
  const schema = resolved(document_, json?.schema);
  const example = json?.example ?? Object.values(json?.examples ?? {})[0]?.value;
  const parts = [
    make("h2", {}, make("span", { className: "method" }, method.toUpperCase()), make("code", {}, path)),
    make("p", {}, ...prose(operation.description ?? operation.summary ?? "")),
    make("pre", { tabIndex: 0 }, make("code", {}, curlOf(path, method, schema, example))),
  ];
  const parameters = (operation.parameters ?? []).map((p) => resolved(document_, p));
  if (parameters.length) {
    parts.push(make("h3", {}, "Parameters"), make("ul", {}, ...parameters.map((p) =>
      make("li", {}, make("code", {}, p.name), ` (${p.in}) `, ...typeOf(p.schema), p.description ? `: ${p.description}` : ""))));
  }
  if (json) parts.push(make("h3", {}, "Body: ", ...typeOf(json.schema)), fieldTable(schema ?? {}));
  parts.push(make("h3", {}, "Answers"), make("ul", {}, ...Object.entries(operation.responses).map(responseLine)));
  return make("section", {}, ...parts);
}

function responseLine([status, response]) {
  const schema = Object.values(response.content ?? {})[0]?.schema;
  return make("li", {}, make("b", {}, status), " ", ...prose(response.description ?? ""), " ", ...(schema ? typeOf(schema) : []));
}

function schemaSection([name, schema]) {
  const parts = [make("h3", { id: `schema-${name}` }, make("code", {}, name)), make("p", {}, ...prose(schema.description ?? ""))];
  parts.push(schema.properties ? fieldTable(schema) : make("p", {}, ...typeOf(schema)));
  return make("section", {}, ...parts);
}

async function draw() {
  const response = await fetch("openapi.json");
  if (!response.ok) throw new Error(`status ${response.status}`);
  const document_ = await response.json();
  const operations = Object.entries(document_.paths).flatMap(([path, item]) =>
    Object.entries(item).filter(([, value]) => value.responses).map(([method, value]) => operationSection(document_, path, method, value)));
  const schemas = Object.entries(document_.components?.schemas ?? {}).map(schemaSection);
  document.getElementById("reference").replaceChildren(...operations, make("h2", {}, "Schemas"), ...schemas);
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

draw().catch((error) => {
  document.getElementById("state").textContent = `openapi.json could not be read: ${error.message}.`;
});
