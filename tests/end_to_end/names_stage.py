"""Programs for tests of names: a resolver, somebody who shows no name, and who goes there by name."""

from __future__ import annotations

import sys

PYTHON = (sys.executable, "-I", "-S", "-c")
# Answers A and AAAA questions by a table; `lie:NAME` is answered with another id first, `long:NAME` over TCP only.
NAME_SERVER = """
import ipaddress, json, socket, socketserver, struct, sys, threading
table = json.loads(sys.argv[2])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 53))
def answered(data, truncated=False):
    labels, at = [], 12
    while data[at]:
        labels.append(data[at + 1 : at + 1 + data[at]].decode().lower())
        at += 1 + data[at]
    name, question = ".".join(labels), data[12 : at + 5]
    kind = int.from_bytes(data[at + 1 : at + 3], "big")
    of = {1: 4, 28: 6}.get(kind)
    found = [ip for ip in map(ipaddress.ip_address, table.get(name, [])) if ip.version == of]
    flags = 0x8180 if name in table else 0x8183
    if truncated and name.startswith("long"):
        found, flags = [], flags | 0x0200
    answers = b"".join(b"\\xc0\\x0c" + struct.pack("!HHIH", kind, 1, 60, len(ip.packed)) + ip.packed for ip in found)
    return name, struct.pack("!HHHHH", flags, 1, len(found), 0, 0) + question + answers
class OverTcp(socketserver.StreamRequestHandler):
    def handle(self):
        while length := self.rfile.read(2):
            data = self.rfile.read(int.from_bytes(length, "big"))
            message = data[:2] + answered(data)[1]
            self.wfile.write(struct.pack("!H", len(message)) + message)
tcp = socketserver.ThreadingTCPServer((sys.argv[1], 53), OverTcp)
threading.Thread(target=tcp.serve_forever, daemon=True).start()
print("up", flush=True)
while True:
    data, whose = s.recvfrom(2000)
    name, body = answered(data, truncated=True)
    if name.startswith("lie"):
        s.sendto(struct.pack("!H", int.from_bytes(data[:2], "big") ^ 1) + body.replace(b"\\x03lie", b"\\x03not"), whose)
    s.sendto(data[:2] + body, whose)
"""
SPEAKER = """
import socket, sys
l = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("up", flush=True)
while True:
    c, _ = l.accept()
    c.sendall(b"220 \\x01\\x02"); c.close()
"""
CONNECT = """
import socket, sys
for name in sys.argv[2:]:
    s = socket.create_connection((name, int(sys.argv[1])), 5); s.recv(99); s.close()
"""
