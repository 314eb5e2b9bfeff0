#!/usr/bin/env python3
"""Prints the events of a segment of the spool (<number>.seg), one a line, as JSON. The format stands in src/spool/log/mod.rs."""
import json
import struct
import sys

TABLE = []
for byte in range(256):
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    TABLE.append(byte)

def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF

class Postcard:
    def __init__(self, data):
        self.data, self.at = data, 0
    def number(self):
        value = shift = 0
        while True:
            byte, self.at = self.data[self.at], self.at + 1
            value, shift = value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value
    def signed(self):
        value = self.number()
        return value >> 1 ^ -(value & 1)
    def text(self):
        length = self.number()
        self.at += length
        return self.data[self.at - length:self.at].decode(errors="backslashreplace")

def frame(body):
    read = Postcard(body)
    event = {"lane": read.text(), "index": read.number(), "synced": read.number(), "received_ms": read.signed(),
             "topic": read.text(), "key": read.text(), "headers": [[read.text(), read.text()] for _ in range(read.number())]}
    if read.number():
        event["dead_letter"] = {"reason": read.text(), "error": read.text(), "since_ms": read.signed()}
    return event | {"value": read.text()}

data = open(sys.argv[1], "rb").read()
magic, version, number = struct.unpack_from("<8sIQ", data)
if magic != b"LCRSPOOL" or version != 1:
    sys.exit("this is no segment of format 1")
at = data.find(b"LCRF", 28)
while at >= 0:
    length, checksum = struct.unpack_from("<II", data, at + 4)
    body = data[at + 12:at + 12 + length]
    if crc32c(struct.pack("<QI", number, at) + body) == checksum:
        print(json.dumps({"segment": number, "offset": at} | frame(body)))
        at += 12 + length
    else:
        print(f"no frame at {at}", file=sys.stderr)
        at += 1
    at = data.find(b"LCRF", at)
