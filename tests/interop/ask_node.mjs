// A client of the DHT, written from wire/SPEC.md alone: it opens a session with a running node, stores a record under
// its own self-certified name, and reads it back.
//
//   node ask_node.mjs HOST PORT NETWORK_ID_HEX
//
// Prints what it saw as one line of JSON. It tries each packet three times; with a node that is near that is enough.

import dgram from "node:dgram";

import { selfCertifiedPrefix } from "./authority.mjs";
import { decode, encode } from "./msgpack.mjs";
import { hkdf, open, publicOf, random, seal, sha256, sign, signedBytes, verifies, x25519 } from "./primitives.mjs";
import { MESSAGES, readMessage } from "./session.mjs";

const PATIENCE_MS = 1000;
const TRIES = 3;
const DAY = 86_400;
const ZERO_NONCE = Buffer.alloc(12);
const TAGS = Object.fromEntries(Object.entries(MESSAGES).map(([tag, [name]]) => [name, Number(tag)]));

const u64 = (value) => Buffer.from(value.toString(16).padStart(16, "0"), "hex");
const refuse = (what) => { throw new Error(what); };

/** One UDP socket, one peer: send a packet, wait for the next one that `accepts` makes something of. */
class Wire {
  constructor(host, port) {
    Object.assign(this, { host, port, socket: dgram.createSocket("udp4"), waiting: null });
    this.socket.on("message", (packet) => this.waiting?.(packet));
  }

  async ask(makePacket, accepts) {
    for (let tried = 0; tried < TRIES; tried++) {
      const answer = await new Promise((resolve) => {
        const timer = setTimeout(() => resolve(null), PATIENCE_MS);
        this.waiting = (packet) => {
          const meant = accepts(packet);
          if (meant !== null) { clearTimeout(timer); resolve(meant); }
        };
        this.socket.send(makePacket(), this.port, this.host);
      });
      if (answer !== null) return answer;
    }
    return refuse("no answer");
  }
}

class Client {
  constructor(host, port, network) {
    this.wire = new Wire(host, port);
    this.network = network;
    this.secret = random(32);
    this.key = publicOf("ed25519", this.secret);
    this.sent = 0;
    this.requests = 0;
  }

  /** SPEC 9.3, with a Ping in it; returns the Pong. */
  async connect() {
    this.session = random(8);
    const nonce = random(12);
    const header = Buffer.concat([this.session, nonce]);
    const knock = Buffer.alloc(192);
    Buffer.concat([Buffer.from([1]), header, Buffer.from([1]), this.network, sha256(this.key)]).copy(knock);
    const who = await this.wire.ask(() => knock, (packet) => this.expected(packet, 2, header));
    if (who.length !== 181) refuse("WHOAREYOU of another length");
    const [cookie, peer, prekey] = [who.subarray(21, 45), who.subarray(45, 77), who.subarray(77, 109)];
    const [notAfter, signature] = [who.subarray(109, 117), who.subarray(117)];
    const said = signedBytes("ioc/1", "dht-prekey", Buffer.concat([this.network, prekey, notAfter]));
    if (!verifies(peer, signature, said)) refuse("the prekey's signature");
    if (Number(notAfter.readBigUInt64BE()) + 300 < Date.now() / 1000) refuse("the prekey has ended");
    this.peer = peer;

    const ephemeral = random(32);
    const ours = publicOf("x25519", ephemeral);
    const flags = Buffer.from([0]);
    const transcript = Buffer.concat([this.network, this.key, peer, header, cookie, prekey, ours, flags]);
    const keys = hkdf(x25519(ephemeral, prekey), sha256(transcript), Buffer.from("ioc/1 dht keys"), 32);
    [this.seals, this.opens] = [keys.subarray(0, 16), keys.subarray(16)];
    const proof = sign(this.secret, signedBytes("ioc/1", "dht-handshake", transcript));
    const kind = Buffer.from([3]);
    const fixed = Buffer.concat([kind, header, cookie, this.key, prekey.subarray(0, 8), ours, flags, proof]);
    const opening = encode([null, encode([TAGS.Ping, ++this.requests])]);
    const shake = Buffer.concat([fixed, seal(this.seals, ZERO_NONCE, opening, fixed)]);
    const echo = Buffer.concat([this.session, ZERO_NONCE]);
    const accept = await this.wire.ask(() => shake, (packet) => this.expected(packet, 4, echo));
    const [theirs, , , message] = decode(open(this.opens, ZERO_NONCE, accept.subarray(21), accept.subarray(0, 21)));
    this.theirs = theirs;
    return readMessage(message);
  }

  expected(packet, kind, echo) {
    if (packet[0] === 6) refuse(`REFUSED ${packet.readUInt16BE(21)}`);
    return packet[0] === kind && packet.subarray(1, 21).equals(echo) ? packet : null;
  }

  /** One request in the session; each repetition is a packet of its own. */
  async ask(tag, ...fields) {
    const request = ++this.requests;
    const plain = encode([tag, request, ...fields]);
    const packet = () => {
      const head = Buffer.concat([Buffer.from([5]), this.theirs, Buffer.alloc(4), u64(++this.sent)]);
      return Buffer.concat([head, seal(this.seals, head.subarray(9), plain, head)]);
    };
    return this.wire.ask(packet, (answer) => {
      if (answer[0] !== 5 || !answer.subarray(1, 9).equals(this.session)) return null;
      const read = readMessage(open(this.opens, answer.subarray(9, 21), answer.subarray(21), answer.subarray(0, 21)));
      return read.fields.request === request ? read : null;
    });
  }

  /** A record of a name that this key owns. */
  record(cid, version, signer = this.secret) {
    const now = Math.floor(Date.now() / 1000);
    const place = ["cn", "hangzhou", "az1"];
    const payload = encode([cid, version, now, now + DAY, "node", place, ["x86_64", "JavaScript", 1, 1], 1024]);
    const signature = sign(signer, signedBytes("ioc/1", "record", payload));
    return ["ioc/1", "record", payload, publicOf("ed25519", signer), signature];
  }
}

async function main(host, port, network) {
  const client = new Client(host, Number(port), Buffer.from(network, "hex"));
  try {
    const pong = await client.connect();
    const cid = `ioc:${selfCertifiedPrefix(client.key)}/gen/hangzhou/az1`;
    const key = sha256(Buffer.from(cid));
    const stored = await client.ask(TAGS.Put, client.record(cid, 2), null);
    const older = await client.ask(TAGS.Put, client.record(cid, 1), null);
    const forged = await client.ask(TAGS.Put, client.record(cid, 3, random(32)), null);
    const value = await client.ask(TAGS.Get, key, 2, 20);
    const none = await client.ask(TAGS.Get, key, 3, 20);
    const unknown = await client.ask(99, "of a later version");
    const [, , payload, signer, signature] = value.fields.record;
    console.log(JSON.stringify({
      cid,
      peer: client.peer.toString("hex"),
      seen: [...pong.fields.host].join(".") + ":" + pong.fields.port,
      bound: client.wire.socket.address().port,
      stored: stored.name,
      older: older.fields.code,
      forged: forged.fields.code,
      got: decode(payload)[0],
      verified: signer.equals(client.key) && verifies(signer, signature, signedBytes("ioc/1", "record", payload)),
      newer: none.fields.record,
      unknown: unknown.fields.code,
    }));
  } finally {
    client.wire.socket.close();
  }
}

await main(...process.argv.slice(2));
