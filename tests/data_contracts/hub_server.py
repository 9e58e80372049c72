"""A small server that answers as the Hugging Face hub does, for one data set at one commit."""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "tiny-org/questions"


@contextmanager
def serve_hub(files: Mapping[str, bytes]) -> Iterator[str]:
    """Serves the files of the data set `NAME`, and yields the hub's address."""

    class Handler(BaseHTTPRequestHandler):
        """The four routes that `huggingface_hub` and `datasets` ask for."""

        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if re.fullmatch(rf"/api/datasets/{NAME}(/revision/[^/]+)?", path):
                self.answer(
                    json.dumps({"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}).encode()
                )
            elif found := re.fullmatch(rf"/api/datasets/{NAME}/tree/[^/]+/?(.*)", path):
                inside = [name for name in files if name.startswith(found[1])]
                entries = [{"type": "file", "path": name, "size": len(files[name]), "oid": "0" * 40} for name in inside]
                self.answer(json.dumps(entries).encode())
            elif (found := re.fullmatch(rf"/datasets/{NAME}/resolve/{COMMIT}/(.*)", path)) and found[1] in files:
                self.answer(files[found[1]], ETag=f'"{found[1]}"', **{"X-Repo-Commit": COMMIT})
            else:
                self.answer(b"", 404, **{"X-Error-Code": "EntryNotFound"})

        do_HEAD = do_GET  # noqa: N815  (the name that http.server asks for)

        def answer(self, body: bytes, code: int = 200, **headers: str) -> None:
            self.send_response(code)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
