// What @huggingface/inference makes of our answers. Usage: node client.mjs FOLDER ADDRESS, with node_modules in FOLDER.
// Prints, as JSON, the version and the result of each call.
import { createRequire } from "node:module";

const [folder, address] = process.argv.slice(2);
const load = createRequire(`${folder}/`);
const { InferenceClient } = load("@huggingface/inference");
const { version } = load("@huggingface/inference/package.json");

const question = { question: "who was in london", context: "john was in paris. mary was in london." };
const text = "john and mary was in london";
const at = (name) => new InferenceClient("no key", { endpointUrl: `${address}/models/${name}` });

async function refusal(call) {
  try {
    await call();
  } catch (error) {
    return `${error.name}: ${error.message}`;
  }
  throw new Error("the call was not refused");
}

const results = {
  version,
  answer: await at("qa").questionAnswering({ inputs: question }),
  bestOfThree: await at("qa").questionAnswering({
    inputs: question,
    parameters: { top_k: 3, max_answer_len: 3, doc_stride: 4, align_to_words: false, handle_impossible_answer: true },
  }),
  global: await at("qa").questionAnswering({ inputs: question, parameters: { scoring: "global" } }),
  labels: await at("sentiment").textClassification({ inputs: text }),
  bestLabel: await at("sentiment").textClassification({ inputs: text, parameters: { top_k: 1 } }),
  entities: await new InferenceClient().endpoint(`${address}/models/ner`).tokenClassification({ inputs: text }),
  first: await at("ner").tokenClassification({
    inputs: text,
    parameters: { aggregation_strategy: "first", ignore_labels: [] },
  }),
  unknownModel: await refusal(() => at("nr").tokenClassification({ inputs: text })),
  wrongStride: await refusal(() =>
    at("qa").questionAnswering({ inputs: question, parameters: { doc_stride: 500 } }),
  ),
};
console.log(JSON.stringify(results));
