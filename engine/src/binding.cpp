// The Python face of the engine: one class. Checks of shape and type are here; what the numbers mean is checked in
// packed.cpp and batch.cpp.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif
#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "binding.h"
#include "forward.h"
#include "isa.h"
#include "model.h"

using namespace nanobind::literals;

namespace sparselane {
namespace {

// tensors[name] as a C-contiguous array of T with exactly this many dimensions.
template <class T, int N>
In<T, N> tensor(const nb::dict& tensors, const std::string& name) {
    if (!tensors.contains(name.c_str())) throw nb::value_error(("tensor " + name + " is missing").c_str());
    In<T, N> array;
    if (!nb::try_cast(tensors[name.c_str()], array, false))
        throw nb::type_error(("tensor " + name + " has the wrong dtype, rank or order").c_str());
    return array;
}

std::vector<float> floats(const nb::dict& tensors, const std::string& name, std::size_t expected) {
    const auto array = tensor<float, 1>(tensors, name);
    check_size(name, array.size(), expected);
    return {array.data(), array.data() + array.size()};
}

Table table(const nb::dict& tensors, const std::string& name, int rows, int hidden) {
    const auto array = tensor<std::int8_t, 2>(tensors, name);
    check_size(name, array.size(), size(rows) * size(hidden));
    return {{array.data(), array.data() + array.size()}, floats(tensors, name + ".scale", size(rows))};
}

ProductTable product_table(const nb::dict& tensors, const std::string& name, int rows, int hidden) {
    const int parts = hidden / ProductTable::kPart;
    const auto codes = tensor<std::uint8_t, 2>(tensors, name + ".codes");
    const auto words = tensor<std::int8_t, 3>(tensors, name + ".codebooks");
    check_size(name + ".codes", codes.size(), size(rows) * size(parts));
    check_size(name + ".codebooks", words.size(), size(parts) * ProductTable::kCodeWords * ProductTable::kPart);
    return {{codes.data(), codes.data() + codes.size()},
            {words.data(), words.data() + words.size()},
            floats(tensors, name + ".scale", size(parts))};
}

Norm norm(const nb::dict& tensors, const std::string& name, int hidden) {
    return {floats(tensors, name + ".weight", size(hidden)), floats(tensors, name + ".bias", size(hidden))};
}

Dense dense(const nb::dict& tensors, const std::string& name, int rows, int hidden) {
    const auto weight = tensor<float, 2>(tensors, name + ".weight");
    check_size(name + ".weight", weight.size(), size(rows) * size(hidden));
    return {{weight.data(), weight.data() + weight.size()}, floats(tensors, name + ".bias", size(rows))};
}

// ---- Model ----------------------------------------------------------------------------------------------------------

Architecture architecture(const nb::dict& sizes, const std::string& activation, const std::string& attention,
                          const std::string& head, float epsilon) {
    const auto value = [&](const char* name) { return nb::cast<int>(sizes[name]); };
    Architecture a{value("layers"),     value("hidden"),    value("heads"), value("ffn"),
                   value("vocabulary"), value("positions"), value("types"), value("labels"),
                   Activation::gelu,    Attention::floats,  Head::tokens,   epsilon};
    if (activation == "relu")
        a.activation = Activation::relu;
    else if (activation != "gelu")
        throw nb::value_error(("activation is '" + activation + "', must be gelu or relu").c_str());
    if (attention == "int8")
        a.attention = Attention::integers;
    else if (attention != "float32")
        throw nb::value_error(("attention is '" + attention + "', must be float32 or int8").c_str());
    if (head == "tanh")
        a.head = Head::sequence_tanh;
    else if (head == "relu")
        a.head = Head::sequence_relu;
    else if (head != "tokens")
        throw nb::value_error(("head is '" + head + "', must be tokens, tanh or relu").c_str());
    return a;
}

// `file`, a descriptor, and `offset` say where the int8 rows of the words begin, where they are not product-quantized.
void load_embeddings(Model& model, const nb::dict& tensors, int file, std::int64_t offset) {
    const Architecture& a = model.architecture;
    if (tensors.contains("word.codes"))
        model.product_word = product_table(tensors, "word", a.vocabulary, a.hidden);
    else
        model.word = FileTable(file, offset, floats(tensors, "word.scale", size(a.vocabulary)), a.hidden);
    model.position = table(tensors, "position", a.positions, a.hidden);
    if (a.types > 0) model.type = table(tensors, "type", a.types, a.hidden);
    model.embedding_norm = norm(tensors, "norm", a.hidden);
    model.embeddings_loaded = true;
}

// `rice` holds the Rice parameter of each of the six matrices, in the order of kMatrixNames.
void load_layer(Model& model, int index, const nb::dict& tensors, const std::vector<int>& rice) {
    if (index < 0 || index >= model.architecture.layers) throw nb::value_error("layer index out of range");
    check_size("rice", rice.size(), kMatrices);
    std::vector<MatrixSource> sources;
    for (int m = 0; m < kMatrices; ++m) {
        const std::string name = kMatrixNames[m], whole = "encoder." + std::to_string(index) + "." + name;
        const auto matrix = static_cast<Matrix>(m);
        sources.push_back({whole, model.rows(matrix), model.columns(matrix), rice[size(m)],
                           view(tensor<std::uint8_t, 1>(tensors, name + ".positions")),
                           view(tensor<std::uint16_t, 1>(tensors, name + ".row_survivors")),
                           view(tensor<std::uint8_t, 1>(tensors, name + ".value_lengths")),
                           view(tensor<std::uint8_t, 1>(tensors, name + ".values")),
                           view(tensor<float, 1>(tensors, name + ".scale")),
                           view(tensor<float, 1>(tensors, name + ".bias"))});
    }
    Layer& layer = model.layers[size(index)];
    layer.attention_norm = norm(tensors, "attention_norm", model.architecture.hidden);
    layer.output_norm = norm(tensors, "output_norm", model.architecture.hidden);
    const Unlocked unlocked;  // `tensors` keeps the spans' memory alive
    model.load_matrices(index, sources);
}

void load_head(Model& model, const nb::dict& tensors) {
    const Architecture& a = model.architecture;
    if (a.head != Head::tokens) model.head_dense = dense(tensors, "dense", a.hidden, a.hidden);
    model.head_output = dense(tensors, "output", a.labels, a.hidden);
    model.head_loaded = true;
}

// Gives freed memory back to the system, which glibc would keep: a service holds its models for days.
void release_memory() {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

using Tokens = In<std::int32_t, 1>;

// A copy of the caller's arrays: another thread may write to them while the interpreter's lock is released, and what was
// checked must be what is read.
struct Copied {
    Copied(const Tokens& t, const Tokens& l, const std::optional<Tokens>& y)
        : tokens(copy(view(t))), lengths(copy(view(l))), types(y ? copy(view(*y)) : std::vector<std::int32_t>{}) {
        if (y && types.empty() && !tokens.empty())  // a Batch without types has none given
            throw nb::value_error(("the size of type_ids is 0, must be " + std::to_string(tokens.size()) +
                                   ", the size of input_ids").c_str());
    }

    Batch batch() const { return {tokens, lengths, types}; }

    static std::vector<std::int32_t> copy(std::span<const std::int32_t> from) { return {from.begin(), from.end()}; }

    std::vector<std::int32_t> tokens, lengths, types;
};

Out<float, 2> run_forward(Model& model, const Tokens& tokens, const Tokens& lengths,
                          const std::optional<Tokens>& types) {
    const Copied copied(tokens, lengths, types);
    const Batch batch = copied.batch();
    check_batch(model, batch);
    const auto [logits, data] = make<float, 2>({logit_rows(model, batch), size(model.architecture.labels)});
    {
        const Unlocked unlocked;
        forward(model, batch, data, nullptr);
    }
    return logits;
}

Out<float, 3> run_hidden_states(Model& model, const Tokens& tokens, const Tokens& lengths,
                                const std::optional<Tokens>& types) {
    const Copied copied(tokens, lengths, types);
    const Batch batch = copied.batch();
    check_batch(model, batch);
    const Architecture& a = model.architecture;
    const auto [hidden, data] = make<float, 3>({size(a.layers) + 1, batch.tokens.size(), size(a.hidden)});
    std::vector<float> logits(logit_rows(model, batch) * size(a.labels));
    {
        const Unlocked unlocked;
        forward(model, batch, logits.data(), data);
    }
    return hidden;
}

// The format of every matrix, layer by layer in the order of MATRICES.
std::vector<std::string> formats(const Model& model) {
    std::vector<std::string> names;
    for (const Layer& layer : model.layers)
        for (const PackedMatrix& matrix : layer.matrices)
            names.emplace_back(kFormatNames[static_cast<std::size_t>(matrix.format)]);
    return names;
}

// Python up to 3.13 ends a daemon thread that wants the lock of an interpreter that ended; later ones let it hang, as here.
[[noreturn]] void hang() {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

// Binds one error of packed.h or codes.h; engine/artifact.py turns it into its ArtifactError.
template <class Error>
void bind_error(nb::module_& m, const char* name) {
    nb::exception<Error>(m, name, PyExc_ValueError);
}

}  // namespace

Unlocked::~Unlocked() {
#ifdef __GLIBCXX__
    try {
        PyEval_RestoreThread(state_);
    } catch (const abi::__forced_unwind&) {
        hang();
    }
#else
    PyEval_RestoreThread(state_);
#endif
}

}  // namespace sparselane

NB_MODULE(_engine, m) {
    using namespace sparselane;
    bind_error<IndexOutOfRange>(m, "IndexOutOfRangeError");
    bind_error<PositionsTruncated>(m, "PositionsTruncatedError");
    bind_error<PositionsTrailing>(m, "PositionsTrailingError");
    bind_error<ValueCodeWrong>(m, "ValueCodeWrongError");
    bind_error<ValuesTruncated>(m, "ValuesTruncatedError");
    bind_error<ValuesTrailing>(m, "ValuesTrailingError");

    nb::class_<Model>(m, "Model")
        .def(
            "__init__",
            [](Model* self, const nb::dict& sizes, const std::string& activation, const std::string& attention,
               const std::string& head, float epsilon, int threads, const std::optional<std::string>& isa) {
                const Architecture a = architecture(sizes, activation, attention, head, epsilon);
                // They read the environment, which Python may change while we have no lock.
                const Kernels& kernels = choose_kernels(isa);
                const bool measured = !kernels_are_named(isa);
                const Unlocked unlocked;  // the pool may be busy with another model
                new (self) Model(a, threads, kernels, measured);
            },
            "sizes"_a, "activation"_a, "attention"_a, "head"_a, "epsilon"_a, "threads"_a, "isa"_a.none())
        .def("load_embeddings", &load_embeddings, "tensors"_a, "file"_a, "offset"_a)
        .def("load_layer", &load_layer, "index"_a, "tensors"_a, "rice"_a)
        .def("load_head", &load_head, "tensors"_a)
        .def("forward", &run_forward, "input_ids"_a.noconvert(), "lengths"_a.noconvert(),
             "type_ids"_a.noconvert().none())
        .def("hidden_states", &run_hidden_states, "input_ids"_a.noconvert(), "lengths"_a.noconvert(),
             "type_ids"_a.noconvert().none())
        .def_prop_ro("threads", [](const Model& model) { return model.pool->threads(); })
        .def_prop_ro("isa", [](const Model& model) { return model.kernels.name; })
        .def_prop_ro("formats", &formats);

    nb::list matrices;
    for (const char* name : kMatrixNames) matrices.append(name);
    m.attr("MATRICES") = matrices;
    m.attr("MAX_COLUMNS") = kMaxColumns;
    m.attr("MAX_THREADS") = kMaxThreads;
    m.def("supported_isas", &supported_isas);
    m.def("release_memory", &release_memory);
    bind_kernels(m);
}
