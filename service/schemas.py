"""The JSON that goes in and out of the typed API; FastAPI shows it under /docs."""

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, FailFast, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from service.errors import nearest, shown

# Spans are scored in a table of tokens x answer length; this bounds it.
LONGEST_ANSWER = 128
# Each answer is searched for among the spans behind the ones before it.
MOST_ANSWERS = 100
# Groups that a request may name to be left out: more than any model has, and few to look through for each entity.
MOST_IGNORED = 1000
# The shortest window that a caller may ask for: three special tokens, and some of the question and the context.
SHORTEST_WINDOW = 8


class Strict(BaseModel):
    """Input JSON: nothing is converted, and an unknown field is an error that names the nearest known one."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = list(cls.model_fields)
            for name in data:
                if name not in known:
                    field = shown(str(name))
                    context = {"field": field, "hint": nearest(field, known)}
                    raise PydanticCustomError("unknown_field", "there is no such field here{hint}", context)
        return data


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        context = {"place": error.start, "code": f"U+{ord(text[error.start]):04X}"}
        message = "the text has half a surrogate pair, {code}, at character {place}: it is no Unicode text"
        raise PydanticCustomError("lone_surrogate", message, context) from None
    return text


# JSON can spell half of a surrogate pair; no tokenizer can read it, and no answer could be written.
Text = Annotated[str, AfterValidator(_encodable)]


class QuestionInput(Strict):
    """A question and the text to find its answer in; both need at least one token."""

    question: Annotated[Text, Field(examples=["Who wrote Faust?"])]
    context: Annotated[Text, Field(examples=["Faust is a tragic play in two parts by Johann Wolfgang von Goethe."])]


class TextPair(Strict):
    """Two texts that a classifier of pairs reads together, for example a premise and a hypothesis."""

    text: Annotated[Text, Field(examples=["A man plays the flute on a stage."])]
    text_pair: Annotated[Text, Field(examples=["Somebody makes music."])]


def _text_or_pair(value: Any) -> str:
    return "a pair" if isinstance(value, dict | TextPair) else "a text"


# Told apart by being an object: a wrong input then gives one error, not one per alternative.
TextOrPair = Annotated[
    Annotated[Text, Tag("a text")] | Annotated[TextPair, Tag("a pair")], Discriminator(_text_or_pair)
]


OffsetUnit = Literal["code_point", "utf16"]
Offsets = Annotated[
    OffsetUnit, Field(description="what start and end count; utf16: the units of JavaScript's and Java's strings")
]


class QuestionAnsweringParameters(Strict):
    """How answers are chosen."""

    top_k: Annotated[int, Field(ge=1, le=MOST_ANSWERS, description="how many answers, best first")] = 1
    max_answer_tokens: Annotated[
        int | None, Field(ge=1, le=LONGEST_ANSWER, description="longest answer in tokens; null: the model's")
    ] = None
    stride: Annotated[
        int | None, Field(ge=0, description="tokens that neighbouring windows share; null: the model's")
    ] = None
    window: Annotated[
        int | None,
        Field(ge=SHORTEST_WINDOW, description="tokens in a window, question and special ones too; null: the model's"),
    ] = None
    max_question_tokens: Annotated[
        int | None, Field(ge=1, description="longest question in tokens; null: what leaves half the window")
    ] = None
    no_answer: Annotated[
        bool | None, Field(description="whether no answer, an empty one, may be the answer; null: as the model learned")
    ] = None
    align_to_words: Annotated[
        bool, Field(description="whether answers grow to whole words; false: they begin and end with a token")
    ] = True
    offset_unit: Offsets = "code_point"


class TextClassificationParameters(Strict):
    """Which labels are answered, with what scores, and what happens to texts longer than a window."""

    top_k: Annotated[int | None, Field(ge=1, description="how many labels, best first; null: all")] = None
    function: Annotated[
        Literal["softmax", "sigmoid", "none"] | None,
        Field(description="makes scores of logits; null: softmax, or sigmoid where each label holds or not by itself"),
    ] = None
    long_inputs: Annotated[
        Literal["average", "refuse"], Field(description="average the logits over windows, or answer 422")
    ] = "average"


class TokenClassificationParameters(Strict):
    """How words get their tags, and which entities are answered."""

    aggregation: Annotated[
        Literal["none", "simple", "first", "average", "max"],
        Field(
            description="a word's tag: its first token's, the best of its tokens' mean, or its surest token's; "
            "simple: tokens join without regard to words; none: an entry per token, with its whole tag"
        ),
    ] = "first"
    ignore_labels: Annotated[
        list[str],
        FailFast(),
        Field(max_length=MOST_IGNORED, description='groups not to answer; "O" are words outside entities'),
    ] = ["O"]
    stride: Annotated[
        int | None, Field(ge=0, description="tokens that neighbouring windows share; null: the model's")
    ] = None
    offset_unit: Offsets = "code_point"


Item = TypeVar("Item")
Parameters = TypeVar("Parameters", bound=Strict)
Entry = TypeVar("Entry")


def one_or_many(value: Any) -> str:
    """Name the alternative of `OneOrMany` that a value is to be checked as."""
    return "many" if isinstance(value, list) else "one"


class FirstErrorOnly(FailFast):
    """Stop at the first wrong element: a body can hold a million. Hashable, so that it can stand in a union."""

    __hash__ = object.__hash__


# Told apart by being a list: a wrong input then gives one error at its own pointer, not one per alternative.
OneOrMany = Annotated[
    Annotated[Item, Tag("one")] | Annotated[list[Item], FirstErrorOnly(), Tag("many")], Discriminator(one_or_many)
]

ModelName = Annotated[str | None, Field(description="model to ask; null: the task's default, see /v1/models")]


class Inputs(Strict, Generic[Item]):
    """The part of a body that says what is asked about."""

    inputs: OneOrMany[Item]

    def items(self) -> list[Item]:
        """Return the inputs as a list."""
        return self.inputs if isinstance(self.inputs, list) else [self.inputs]

    def pointers(self) -> list[str]:
        """Return the JSON pointer of each input."""
        return [f"/inputs/{i}" for i in range(len(self.inputs))] if isinstance(self.inputs, list) else ["/inputs"]


class Request(Inputs[Item], Generic[Item, Parameters]):
    """The body of a typed request."""

    model: ModelName = None
    parameters: Parameters


class QuestionAnsweringRequest(Request[QuestionInput, QuestionAnsweringParameters]):
    """Find the answer to a question in a text."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "inputs": {
                        "question": "Who wrote Faust?",
                        "context": "Faust is a tragic play in two parts by Johann Wolfgang von Goethe.",
                    },
                    "parameters": {"top_k": 2},
                }
            ]
        }
    )
    parameters: QuestionAnsweringParameters = QuestionAnsweringParameters()


class TextClassificationRequest(Request[TextOrPair, TextClassificationParameters]):
    """Label a text, or a pair of texts where the model reads pairs."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"inputs": ["A quiet triumph.", "I left before the end."], "parameters": {"top_k": 1}}],
        }
    )
    parameters: TextClassificationParameters = TextClassificationParameters()


class TokenClassificationRequest(Request[Text, TokenClassificationParameters]):
    """Find the entities in a text."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"inputs": "Marie Curie moved from Warsaw to Paris.", "parameters": {"aggregation": "first"}}]
        }
    )
    parameters: TokenClassificationParameters = TokenClassificationParameters()


class Output(BaseModel):
    """Output JSON."""

    model_config = ConfigDict(frozen=True)


Score = Annotated[float, Field(ge=0, le=1)]
CodePoint = Annotated[int, Field(ge=0, description="code points into the text that was sent")]
Offset = Annotated[int, Field(ge=0, description="into the text that was sent: code points, or what offset_unit says")]


class Answer(Output):
    """A part of the context: `answer` is `context[start:end]`; scores of all possible answers add up to 1.

    A model trained to say that there is no answer does so with an empty one.
    """

    answer: str
    score: Score
    start: Offset
    end: Offset


class Label(Output):
    """A label and its probability; those of sigmoids need not add up to 1; a logit where the function is none."""

    label: str
    score: float


class Entity(Output):
    """A part of the text: `word` is `text[start:end]`; the score is the mean over its words.

    `entity_group` is the whole tag, B- or I- too, where `aggregation` is none.
    """

    entity_group: str
    score: Score
    word: str
    start: Offset
    end: Offset


class Usage(Output):
    """What the model read, special tokens and overlaps of windows included."""

    tokens: int
    windows: int


class Response(Output, Generic[Entry]):
    """The answer: one entry per input, in order."""

    model: str
    results: list[list[Entry]]
    usage: Usage


class ProblemField(Output):
    """One wrong field of the request."""

    pointer: Annotated[str, Field(description="JSON pointer into the body", examples=["/parameters/top_k"])]
    message: str
    value: str | None = None
    limit: str | None = None


class Problem(Output):
    """RFC 9457; `error` repeats `detail` for clients that look there."""

    type: str
    title: str
    status: int
    detail: str
    error: str
    request_id: str
    errors: list[ProblemField] | None = None
