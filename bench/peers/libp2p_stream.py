"""One stream of py-libp2p's QUIC (trio) between two processes; run by the interpreter of its own environment.

`python libp2p_stream.py BYTES` prints one JSON object: `mb_s`, and `cpu_s_gb` of both ends together. The client sends,
as `write` is what its users call; the receiver confirms the last byte. Its wait of 250 ms before each connection
("happy eyeballs") is switched off.
"""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

logging.disable(logging.CRITICAL)

import trio  # noqa: E402
from libp2p import new_host  # noqa: E402
from libp2p.crypto.ed25519 import create_new_key_pair  # noqa: E402
from libp2p.network import swarm  # noqa: E402
from libp2p.peer.peerinfo import info_from_p2p_addr  # noqa: E402
from multiaddr import Multiaddr  # noqa: E402

swarm._HAPPY_EYEBALLS_DELAY = 0
PROTOCOL = "/bench/sink/1"
PIECE = 1 << 16
SECONDS_MAX = 60
LISTEN = Multiaddr("/ip4/127.0.0.1/udp/0/quic-v1")


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def sink(stream):
    size = int.from_bytes(await stream.read(8), "big")
    while size > 0:
        size -= len(await stream.read(PIECE))
    await stream.write(b"k")


async def serve():
    host = new_host(key_pair=create_new_key_pair(), listen_addrs=[LISTEN], enable_quic=True)
    async with host.run(listen_addrs=[LISTEN]):
        host.set_stream_handler(PROTOCOL, sink)
        print(host.get_addrs()[0], flush=True)
        await trio.sleep_forever()


async def send(address, pid, size):
    host = new_host(key_pair=create_new_key_pair(), listen_addrs=[LISTEN], enable_quic=True)
    async with host.run(listen_addrs=[LISTEN]):
        info = info_from_p2p_addr(Multiaddr(address))
        await host.connect(info)
        stream = await host.new_stream(info.peer_id, [PROTOCOL])
        used = time.process_time() + cpu_seconds(pid)
        began = time.perf_counter()
        await stream.write(size.to_bytes(8, "big"))
        sent = 0
        with trio.fail_after(SECONDS_MAX):
            while sent < size:
                step = min(PIECE, size - sent)
                await stream.write(bytes(step))
                sent += step
            assert await stream.read(1) == b"k"
        seconds = time.perf_counter() - began
        used = time.process_time() + cpu_seconds(pid) - used
        print(json.dumps({"mb_s": size / 1e6 / seconds, "cpu_s_gb": used / size * 1e9}), flush=True)
        os._exit(0)  # its host does not end by itself


def main():
    if sys.argv[1] == "serve":
        trio.run(serve)
        return
    server = subprocess.Popen([sys.executable, __file__, "serve"], stdout=subprocess.PIPE, text=True)
    child = os.fork()
    if child == 0:
        trio.run(send, server.stdout.readline().strip(), server.pid, int(sys.argv[1]))
    _, status = os.waitpid(child, 0)
    server.kill()
    server.wait()
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
