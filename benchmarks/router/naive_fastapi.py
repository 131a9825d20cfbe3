"""What a project writes first: FastAPI, a pydantic body, a shared httpx client, JSON decoded and encoded again."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict

CHAT = "/v1/chat/completions"


class Message(BaseModel):
    """One chat message."""

    model_config = ConfigDict(extra="allow")
    role: str
    content: Any = None


class ChatRequest(BaseModel):
    """A chat body."""

    model_config = ConfigDict(extra="allow")
    model: str
    messages: list[Message]
    stream: bool = False


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=1000)
    base = os.environ["UPSTREAM"]
    async with httpx.AsyncClient(base_url=base, timeout=60, limits=limits) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=_lifespan)


@app.post(CHAT)
async def chat(request: ChatRequest) -> Response:
    """Pass one chat on."""
    client: httpx.AsyncClient = app.state.client
    body = request.model_dump(exclude_unset=True)
    if request.stream:

        async def events() -> AsyncIterator[bytes]:
            async with client.stream("POST", CHAT, json=body) as reply:
                async for piece in reply.aiter_bytes():
                    yield piece

        return StreamingResponse(events(), media_type="text/event-stream")
    reply = await client.post(CHAT, json=body)
    return JSONResponse(reply.json(), status_code=reply.status_code)
