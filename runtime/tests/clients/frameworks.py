"""LangChain, LlamaIndex, LiteLLM and Instructor, unmodified, against the server whose base URL is the first argument."""

import os
import sys
import typing
import urllib.parse

base = sys.argv[1]
# None of them may talk to anyone else: what they report or look up by themselves is off, and every address is noted.
os.environ.update(
    LITELLM_LOCAL_MODEL_COST_MAP="True",
    LANGSMITH_TRACING_V2="false",
    HF_HUB_DISABLE_TELEMETRY="1",
    DO_NOT_TRACK="1",
)
hosts = set()


def note(event, values):
    if event == "socket.getaddrinfo":
        hosts.add(values[0])
    elif event == "socket.connect":
        hosts.add(values[1][0])


sys.addaudithook(note)

import instructor
import litellm
import openai
import pydantic
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

client = openai.OpenAI(base_url=base, api_key="unused", max_retries=0)
model = client.models.list().data[0].id
question = "What is a sail?"
turn = [{"role": "user", "content": question}]
options = {"temperature": 0, "seed": 7}
text = client.chat.completions.create(model=model, messages=turn, max_tokens=8, **options).choices[0].message.content
plain = client.completions.create(model=model, prompt="One, two,", max_tokens=4, **options).choices[0].text


class Ship(pydantic.BaseModel):
    """A ship."""

    # LangChain's and Instructor's schemas would allow further properties otherwise, and a small model makes some up.
    model_config = pydantic.ConfigDict(extra="forbid")
    name: str = pydantic.Field(max_length=20)
    masts: typing.Literal[1, 2, 3]


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"nothing was raised instead of {kind}")


# LangChain

chat = ChatOpenAI(model=model, base_url=base, api_key="unused", max_tokens=60, max_retries=0, **options)
answer = chat.invoke(question, max_tokens=8)
assert answer.content == text, (answer, text)
assert answer.response_metadata["finish_reason"] == "length", answer
assert answer.usage_metadata["output_tokens"] == 8, answer
chunks = list(chat.stream(question, max_tokens=8, stream_usage=True))
assert "".join(chunk.content for chunk in chunks) == text, (chunks, text)
totals = [chunk.usage_metadata["total_tokens"] for chunk in chunks if chunk.usage_metadata]
assert totals == [answer.usage_metadata["total_tokens"]], chunks
for method in ("json_schema", "function_calling"):
    ship = chat.with_structured_output(Ship, method=method).invoke("Describe a ship.")
    assert isinstance(ship, Ship), (method, ship)


@tool
def weather(city: typing.Literal["Paris", "Rome"]) -> str:
    """Tells the weather of a city."""
    return f"21 degrees in {city}"


# The loop of every agent: a call, its result, an answer.
forced = {"tool_choice": "required", "parallel_tool_calls": False}
talk = [("user", "How warm is it in Paris?")]
called = chat.bind_tools([weather], strict=True, **forced).invoke(talk)
assert called.response_metadata["finish_reason"] == "tool_calls", called
assert [call["name"] for call in called.tool_calls] == ["weather"] and not called.invalid_tool_calls, called
told = weather.invoke(called.tool_calls[0])
assert told.type == "tool" and told.content.startswith("21 degrees in "), told
assert chat.bind_tools([weather]).invoke([*talk, called, told], max_tokens=8).content is not None
whole = None
for chunk in chat.bind_tools([weather], strict=True, **forced).stream(talk):
    whole = chunk if whole is None else whole + chunk
assert [call["args"] for call in whole.tool_calls] == [call["args"] for call in called.tool_calls], (whole, called)
error = raises(openai.BadRequestError, lambda: chat.invoke(question, max_tokens=10**6))
assert error.code == "context_length_exceeded", error

# LlamaIndex

common = {"model": model, "api_base": base, "api_key": "unused", "context_window": 2048, "max_retries": 0, "temperature": 0}
common |= {"additional_kwargs": {"seed": 7}}
llm = OpenAILike(**common, is_chat_model=True, is_function_calling_model=True, max_tokens=8)
talk = [ChatMessage(role="user", content=question)]
assert llm.chat(talk).message.content == text
parts = list(llm.stream_chat(talk))
assert "".join(part.delta for part in parts) == parts[-1].message.content == text, (parts, text)
assert llm.complete(question).text == text
completing = OpenAILike(**common, max_tokens=4)
assert completing.complete("One, two,").text == plain
assert "".join(part.delta for part in completing.stream_complete("One, two,")) == plain
structured = OpenAILike(**common, is_chat_model=True, should_use_structured_outputs=True, max_tokens=60)
assert isinstance(structured.as_structured_llm(Ship).complete("Describe a ship.").raw, Ship)
calling = OpenAILike(**common, is_chat_model=True, is_function_calling_model=True, max_tokens=60)
chosen = FunctionTool.from_defaults(weather.func, name="weather")
done = calling.predict_and_call([chosen], "How warm is it in Paris?", tool_required=True)
assert done.response.startswith("21 degrees in "), done

# LiteLLM

litellm.suppress_debug_info = True  # or it prints where to get help
common = {"model": f"openai/{model}", "api_base": base, "api_key": "unused", "max_retries": 0, **options}
answer = litellm.completion(**common, messages=turn, max_tokens=8)
assert answer.choices[0].message.content == text, (answer, text)
parts = list(litellm.completion(**common, messages=turn, max_tokens=8, stream=True, stream_options={"include_usage": True}))
assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == text, (parts, text)
assert parts[-1].usage.completion_tokens == answer.usage.completion_tokens == 8, parts[-1]
made = litellm.completion(**common, messages=turn, max_tokens=60, response_format=Ship)
assert Ship.model_validate_json(made.choices[0].message.content), made
parameters = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
offered = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
called = litellm.completion(**common, messages=turn, max_tokens=60, tools=offered, **forced).choices[0]
assert called.finish_reason == "tool_calls" and len(called.message.tool_calls) == 1, called
result = {"role": "tool", "tool_call_id": called.message.tool_calls[0].id, "content": "21 degrees"}
assert litellm.completion(**common, messages=[*turn, called.message, result], max_tokens=8, tools=offered).choices[0]
raises(litellm.BadRequestError, lambda: litellm.completion(**common, messages=turn, max_tokens=10**6))

# Instructor

for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    ask = {"model": model, "messages": [{"role": "user", "content": "Describe a ship."}], "max_tokens": 60, **options}
    ship = instructor.from_openai(client, mode=mode).create(**ask, response_model=Ship, max_retries=0)
    assert isinstance(ship, Ship), (mode, ship)

assert hosts <= {urllib.parse.urlsplit(base).hostname, "127.0.0.1", "::1"}, hosts
print("all good")
