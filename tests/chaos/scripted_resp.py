"""A server that speaks RESP and answers every command with one scripted reply: for errors that are rare."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def scripted_resp(reply: bytes, on_multi: bytes = b"+OK\r\n") -> AsyncIterator[str]:
    """A server at the URL it gives; MULTI is answered by `on_multi`, everything else by `reply`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while head := await reader.readline():
                name = b""
                for place in range(int(head[1:])):
                    size = int((await reader.readline())[1:])
                    part = (await reader.readexactly(size + 2))[:-2]
                    name = part if place == 0 else name
                writer.write(on_multi if name == b"MULTI" else reply)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
