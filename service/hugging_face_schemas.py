"""The JSON of Hugging Face's clients, in and out: names, defaults and shapes as transformers' pipelines have them."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, FailFast, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from service.schemas import (
    MOST_ANSWERS,
    MOST_IGNORED,
    SHORTEST_WINDOW,
    FirstErrorOnly,
    Inputs,
    Label,
    OneOrMany,
    Output,
    QuestionInput,
    Strict,
    Text,
    TextOrPair,
    one_or_many,
)

# What the hosted API and Hugging Face's own server answer for a text unless told otherwise.
LABELS_ANSWERED = 5

Options = Annotated[
    dict[str, Any] | None, Field(description="use_cache, wait_for_model and the like: accepted, without effect")
]


class QuestionAnswering(Strict):
    """The parameters of question answering; lengths are in tokens."""

    top_k: Annotated[int | None, Field(ge=1, le=MOST_ANSWERS, description="null: 1")] = None
    doc_stride: Annotated[
        int | None, Field(ge=0, description="tokens that neighbouring windows share; null: half a window, at most 128")
    ] = None
    max_answer_len: Annotated[int | None, Field(ge=1, description="null: 15")] = None
    max_seq_len: Annotated[
        int | None,
        Field(ge=SHORTEST_WINDOW, description="a window, question and special tokens too; null: the model's"),
    ] = None
    max_question_len: Annotated[
        int | None, Field(ge=1, description="a longer question is refused; null: all that leave room for the context")
    ] = None
    handle_impossible_answer: Annotated[
        bool | None, Field(description="whether no answer, an empty one, may be the answer; null: false")
    ] = None
    align_to_words: Annotated[bool | None, Field(description="whether answers grow to whole words; null: true")] = None
    scoring: Annotated[
        Literal["pipeline", "global"],
        Field(
            description="pipeline: as transformers 4.57, windows one by one, scores of equal texts added, so that one "
            "can pass 1; global: as /v1/question-answering, over all windows, at most 1 in all"
        ),
    ] = "pipeline"


class TextClassification(Strict):
    """The parameters of text classification."""

    top_k: Annotated[int | None, Field(ge=1, description="how many labels, best first; null: all")] = LABELS_ANSWERED
    function_to_apply: Annotated[
        Literal["softmax", "sigmoid", "none"] | None, Field(description="makes scores of logits; null: the model's")
    ] = None
    return_all_scores: Annotated[
        bool | None, Field(description="true: all labels, whatever top_k says (the name before transformers 4.20)")
    ] = None


class TokenClassification(Strict):
    """The parameters of token classification."""

    aggregation_strategy: Annotated[
        Literal["none", "simple", "first", "average", "max"] | None,
        Field(description="how tokens become entities; none: each is one; null: simple"),
    ] = None
    ignore_labels: Annotated[
        list[str] | None, FailFast(), Field(max_length=MOST_IGNORED, description='null: ["O"]')
    ] = None
    stride: Annotated[
        int | None,
        Field(
            ge=0,
            description="windows sharing so many tokens, the longest of overlapping entities kept; null: all is "
            "read, and each token judged in the window where it sees most",
        ),
    ] = None


def _example(inputs: Any, **parameters: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [{"inputs": inputs, "parameters": parameters}]})


class Columns(Strict):
    """A question on a context; or several, each list as long as the other, or one of them a single text for all."""

    question: OneOrMany[Text]
    context: OneOrMany[Text]

    @property
    def count(self) -> int:
        """How many there are."""
        return next((len(column) for column in (self.question, self.context) if isinstance(column, list)), 1)

    def items(self) -> list[QuestionInput]:
        """Return question and context of each."""
        columns = (self.question, self.context)
        rows = zip(*(column if isinstance(column, list) else [column] * self.count for column in columns), strict=True)
        # Not checked again: one context may stand beside thousands of questions.
        return [QuestionInput.model_construct(question=question, context=context) for question, context in rows]

    @model_validator(mode="after")
    def _equally_long(self) -> "Columns":
        lists = [column for column in (self.question, self.context) if isinstance(column, list)]
        if len(lists) == 2 and len(lists[0]) != len(lists[1]):
            counts = {"questions": len(lists[0]), "contexts": len(lists[1])}
            raise PydanticCustomError("columns", "there are {questions} questions and {contexts} contexts", counts)
        return self


class QuestionAnsweringBody(Strict):
    """Find the answer to a question in a text."""

    model_config = _example(
        {"question": "Who wrote Faust?", "context": "Faust is a tragic play by Johann Wolfgang von Goethe."}, top_k=2
    )
    inputs: Annotated[
        Annotated[Columns, Tag("one")] | Annotated[list[QuestionInput], FirstErrorOnly(), Tag("many")],
        Discriminator(one_or_many),
    ]
    parameters: QuestionAnswering = QuestionAnswering()
    options: Options = None

    def items(self) -> list[QuestionInput]:
        """Return question and context of each input."""
        return self.inputs if isinstance(self.inputs, list) else self.inputs.items()

    def pointers(self) -> list[str]:
        """Return the JSON pointer of each input; of columns that of the object which holds them."""
        if isinstance(self.inputs, list):
            return [f"/inputs/{i}" for i in range(len(self.inputs))]
        return ["/inputs"] * self.inputs.count


class TextClassificationBody(Inputs[TextOrPair]):
    """Label a text, or a pair of texts where the model reads pairs."""

    model_config = _example(["A quiet triumph.", "I left before the end."], top_k=1)
    parameters: TextClassification = TextClassification()
    options: Options = None


class TokenClassificationBody(Inputs[Text]):
    """Find the entities in a text."""

    model_config = _example("Marie Curie moved from Warsaw to Paris.", aggregation_strategy="first")
    parameters: TokenClassification = TokenClassification()
    options: Options = None


class Span(Output):
    """An answer: `answer` is `context[start:end]`, in code points."""

    score: float
    start: int
    end: int
    answer: str


class TokenEntity(Output):
    """A token and its tag, for the strategy none; `index` counts tokens from [CLS], which is 0."""

    entity: str
    score: float
    index: int
    word: str
    start: int
    end: int


class GroupedEntity(Output):
    """An entity; `word` is what the tokenizer makes of its tokens: the text itself is `text[start:end]`."""

    entity_group: str
    score: float
    word: str
    start: int
    end: int


# One answer is no list, and one question neither; labels are always a list per text; entities as the texts were sent.
Answers = (
    Span
    | list[Span | list[Span]]
    | list[list[Label]]
    | list[TokenEntity | GroupedEntity]
    | list[list[TokenEntity | GroupedEntity]]
)


class ModelInfo(Output):
    """A model; `max_input_length` is in tokens of one window: longer texts are read in several."""

    model_id: str
    pipeline_tag: str
    model_sha: str | None
    model_dtype: str | None
    max_input_length: int
    labels: list[str]
