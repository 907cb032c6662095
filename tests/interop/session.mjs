// A DHT session (SPEC 9.1) computed anew: from the private keys and the bytes on the wire, nothing else.

import { checkChain } from "./authority.mjs";
import { decode } from "./msgpack.mjs";
import { hkdf, open, publicOf, sha256, signedBytes, verifies, x25519 } from "./primitives.mjs";

const KIND = { KNOCK: 1, WHOAREYOU: 2, HANDSHAKE: 3, ACCEPT: 4, MESSAGE: 5, REFUSED: 6 };
const HEADER_BYTES = 21;
const KNOCK_BYTES = 192;
const HANDSHAKE_HEADER_BYTES = 182;
const DATAGRAM_BYTES_MAX = 1200;
const FLAG_SERVER = 1;
const ZERO_NONCE = Buffer.alloc(12);

/** Fields of the messages by tag, as section 9.2 lists them. */
export const MESSAGES = {
  1: ["Ping", "request"],
  2: ["Pong", "request", "host", "port"],
  3: ["FindNode", "request", "target"],
  4: ["Nodes", "request", "nodes", "total"],
  5: ["GetServers", "request", "after"],
  6: ["Get", "request", "key", "min_version", "nodes_max"],
  7: ["Value", "request", "record", "chain_hash", "nodes"],
  8: ["Put", "request", "record", "chain_hash"],
  9: ["Stored", "request"],
  10: ["Refusal", "request", "code", "detail"],
  11: ["GetChain", "request", "chain_hash"],
  12: ["ChainValue", "request", "chain"],
  13: ["PutChain", "request", "chain"],
  14: ["Announce", "request", "holder"],
  15: ["GetHolders", "request", "blob"],
  16: ["Holders", "request", "holders", "total", "nodes"],
  17: ["PutMany", "request", "records", "chain_hash"],
  18: ["StoredMany", "request", "codes"],
  19: ["Watch", "request", "key", "version", "seconds"],
  20: ["Watching", "request", "seconds"],
  21: ["Changed", "request", "key", "record", "chain_hash"],
};

const hex = (text) => Buffer.from(text.replace(/^hex:/, ""), "hex");

/** The parts of a packet, cut off from the front by their sizes. */
function cut(packet, ...sizes) {
  let at = 0;
  const parts = sizes.map((size) => packet.subarray(at, (at += size)));
  if (at > packet.length) throw new Error(`a packet of ${packet.length} bytes is too short`);
  return [...parts, packet.subarray(at)];
}

/** Name and fields of a message. Fields at the end that this version does not know are ignored. */
export function readMessage(plain) {
  const [tag, ...values] = decode(plain);
  const [name, ...fields] = MESSAGES[tag] ?? [];
  if (name === undefined) throw new Error(`message of unknown type ${tag}`);
  if (values.length < fields.length) throw new Error(`${name} of ${values.length} fields`);
  return { name, fields: Object.fromEntries(fields.map((field, n) => [field, values[n]])) };
}

/**
 * Check one session of dht_session.json. `terms` are the network ID, the root keys (hex), the time, the public keys of
 * the people by name, and `expect(condition, what)`, which notes a fault. Returns the messages that were read.
 */
export function checkSession(vector, terms) {
  return new SessionCheck(vector, terms).run();
}

class SessionCheck {
  constructor(vector, { network, roots, now, people, expect }) {
    Object.assign(this, { vector, network, roots, now, expect });
    this.initiatorKey = people[vector.initiator.name];
    this.responderKey = people[vector.responder.name];
    this.prekey = publicOf("x25519", hex(vector.prekey_private));
    this.ephemeral = publicOf("x25519", hex(vector.ephemeral_private));
  }

  run() {
    this.knock();
    this.whoareyou();
    this.handshakeHeader();
    this.deriveKeys();
    const first = this.handshakeBody();
    const answer = this.accept();
    return [first, answer, ...this.vector.messages.map((message, number) => this.message(message, `MESSAGE ${number + 1}`))];
  }

  same(bytes, text, what) {
    this.expect(bytes.equals(hex(text)), what);
  }

  knock() {
    const { vector, expect } = this;
    this.knockBytes = hex(vector.KNOCK.bytes);
    const [kind, session, nonce, version, asked, nodeId, zeros] = cut(this.knockBytes, 1, 8, 12, 1, 32, 32);
    expect(this.knockBytes.length === KNOCK_BYTES && kind[0] === KIND.KNOCK && version[0] === 1, "KNOCK: kind, version, size");
    expect(asked.equals(this.network), "KNOCK: network ID");
    expect(nodeId.equals(sha256(this.initiatorKey)), "KNOCK: the initiator's node ID");
    expect(zeros.every((byte) => byte === 0), "KNOCK: padding");
    const read = { session_id: session, nonce, version: version[0], network_id: asked, node_id: nodeId };
    sameFields(vector.KNOCK.fields, read, expect, "KNOCK");
    this.session = session;
    this.counters = { [vector.initiator.name]: 0, [vector.responder.name]: 0 };
  }

  whoareyou() {
    const { WHOAREYOU } = this.vector;
    const { expect, prekey, responderKey } = this;
    const [kind, echo, cookie, key, told, notAfter, signature, rest] = cut(hex(WHOAREYOU.bytes), 1, 20, 24, 32, 32, 8, 64);
    expect(kind[0] === KIND.WHOAREYOU && rest.length === 0, "WHOAREYOU: kind, size");
    expect(echo.equals(this.knockBytes.subarray(1, HEADER_BYTES)), "WHOAREYOU: session ID and nonce are KNOCK's");
    expect(key.equals(responderKey) && told.equals(prekey), "WHOAREYOU: keys");
    const signed = signedBytes("ioc/1", "dht-prekey", Buffer.concat([this.network, prekey, notAfter]));
    this.same(signed, WHOAREYOU.signed_bytes, "WHOAREYOU: signed bytes");
    expect(verifies(responderKey, signature, signed), "WHOAREYOU: the prekey's signature");
    const end = Number(notAfter.readBigUInt64BE());
    expect(end >= this.now, "WHOAREYOU: the prekey has ended");
    const header = { session_id: echo.subarray(0, 8), nonce: echo.subarray(8) };
    sameFields(WHOAREYOU.fields, { ...header, cookie, key, prekey: told, not_after: end, signature }, expect, "WHOAREYOU");
    Object.assign(this, { echo, cookie });
  }

  handshakeHeader() {
    const { HANDSHAKE, initiator } = this.vector;
    const { expect, initiatorKey, prekey } = this;
    const [kind, echo, cookie, key, prekeyId, ephemeral, flags, signature] =
      cut(hex(HANDSHAKE.bytes), 1, 20, 24, 32, 8, 32, 1, 64);
    expect(kind[0] === KIND.HANDSHAKE && echo.equals(this.echo) && cookie.equals(this.cookie), "HANDSHAKE: echo and cookie");
    expect(key.equals(initiatorKey), "HANDSHAKE: the initiator's key");
    expect(prekeyId.equals(prekey.subarray(0, 8)), "HANDSHAKE: prekey ID");
    expect(ephemeral.equals(this.ephemeral), "HANDSHAKE: ephemeral");
    expect((flags[0] & FLAG_SERVER) === Number(initiator.server), "HANDSHAKE: flags");
    const header = { session_id: echo.subarray(0, 8), nonce: echo.subarray(8), cookie, key };
    const read = { ...header, prekey_id: prekeyId, ephemeral, flags: flags[0], signature };
    sameFields(HANDSHAKE.fields, read, expect, "HANDSHAKE");
    this.transcript = Buffer.concat([
      this.network, initiatorKey, this.responderKey, this.echo, cookie, prekey, ephemeral, flags,
    ]);
    const signed = signedBytes("ioc/1", "dht-handshake", this.transcript);
    this.same(signed, HANDSHAKE.signed_bytes, "HANDSHAKE: signed bytes");
    expect(verifies(initiatorKey, signature, signed), "HANDSHAKE: signature");
  }

  deriveKeys() {
    const { keys, ephemeral_private: ours, prekey_private: theirs } = this.vector;
    const shared = x25519(hex(ours), this.prekey);
    this.expect(shared.equals(x25519(hex(theirs), this.ephemeral)), "both sides have one shared secret");
    const salt = sha256(this.transcript);
    const output = hkdf(shared, salt, Buffer.from("ioc/1 dht keys"), 32);
    [this.initiatorCipher, this.responderCipher] = cut(output, 16, 16);
    this.same(this.transcript, keys.transcript, "transcript");
    this.same(salt, keys.salt, "salt");
    this.same(shared, keys.shared_secret, "shared secret");
    this.same(output, keys.hkdf_output, "HKDF output");
    this.same(this.initiatorCipher, keys.initiator_key, "the initiator's key");
    this.same(this.responderCipher, keys.responder_key, "the responder's key");
  }

  handshakeBody() {
    const plain = this.plain(this.vector.HANDSHAKE, HANDSHAKE_HEADER_BYTES, ZERO_NONCE, this.initiatorCipher, "HANDSHAKE");
    const [chain, message] = decode(plain);
    this.admit(chain, this.initiatorKey, this.vector.initiator.server, "HANDSHAKE");
    return readMessage(message);
  }

  accept() {
    const { ACCEPT, responder } = this.vector;
    const [kind, echo, zero] = cut(hex(ACCEPT.bytes), 1, 8, 12);
    this.expect(kind[0] === KIND.ACCEPT && echo.equals(this.session) && zero.equals(ZERO_NONCE), "ACCEPT: header");
    const plain = this.plain(ACCEPT, HEADER_BYTES, ZERO_NONCE, this.responderCipher, "ACCEPT");
    const [session, flags, chain, message] = decode(plain);
    this.expect((flags & FLAG_SERVER) === Number(responder.server), "ACCEPT: flags");
    this.admit(chain, this.responderKey, responder.server, "ACCEPT");
    this.responderSession = session;
    return readMessage(message);
  }

  message(message, what) {
    const { vector, expect, counters } = this;
    const byInitiator = message.sender === vector.initiator.name;
    const [kind, to, zero, counter] = cut(hex(message.bytes), 1, 8, 4, 8);
    counters[message.sender] += 1;
    expect(kind[0] === KIND.MESSAGE && zero.readUInt32BE() === 0, `${what}: header`);
    expect(to.equals(byInitiator ? this.responderSession : this.session), `${what}: session ID is not its receiver's`);
    expect(Number(counter.readBigUInt64BE()) === message.counter, `${what}: counter`);
    expect(counters[message.sender] === message.counter, `${what}: counters count up from 1`);
    const cipher = byInitiator ? this.initiatorCipher : this.responderCipher;
    const read = readMessage(this.plain(message, HEADER_BYTES, Buffer.concat([zero, counter]), cipher, what));
    const { tag, fields } = message.plaintext;
    expect(MESSAGES[tag]?.[0] === read.name, `${what}: tag ${tag}`);
    expect(Object.keys(fields).join() === Object.keys(read.fields).join(), `${what}: names of fields`);
    return read;
  }

  /** Decrypt a packet, whose ciphertext begins after `head` bytes. */
  plain(part, head, nonce, cipher, what) {
    const packet = hex(part.bytes);
    this.expect(packet.length <= DATAGRAM_BYTES_MAX, `${what}: ${packet.length} bytes`);
    this.same(packet.subarray(0, head), part.associated_data, `${what}: associated data`);
    this.same(packet.subarray(head), part.ciphertext, `${what}: ciphertext`);
    this.same(nonce, part.gcm_nonce, `${what}: nonce`);
    const plain = open(cipher, nonce, packet.subarray(head), packet.subarray(0, head));
    this.same(plain, part.plaintext.bytes, `${what}: plaintext`);
    return plain;
  }

  /** The chain that a node shows for itself, in a certified network. */
  admit(chain, key, server, what) {
    if (this.vector.admission === "open") {
      this.expect(chain === null, `${what}: a chain in an open network`);
      return;
    }
    const grant = checkChain(chain, { roots: this.roots, now: this.now });
    this.expect(grant.subject.equals(key), `${what}: the chain is another's`);
    this.expect(!server || grant.roles.some((role) => role !== "consumer"), `${what}: a server without a server's role`);
  }
}

/** A packet that was refused, and its REFUSED. */
export function checkRefusal(vector, expect) {
  const [kind, echo, code, rest] = cut(hex(vector.bytes), 1, 20, 2);
  const packet = hex(vector.packet_bytes);
  expect(packet[0] === KIND[vector.packet], `${vector.name}: the kind of the refused packet`);
  expect(kind[0] === KIND.REFUSED && rest.length === 0, `${vector.name}: kind, size`);
  expect(echo.equals(packet.subarray(1, HEADER_BYTES)), `${vector.name}: echo`);
  expect(code.readUInt16BE() === vector.code, `${vector.name}: code`);
}

function sameFields(written, read, expect, what) {
  expect(Object.keys(written).join() === Object.keys(read).join(), `${what}: names of fields`);
  for (const [name, value] of Object.entries(read)) {
    expect(Buffer.isBuffer(value) ? value.equals(hex(String(written[name]))) : value === written[name], `${what}: ${name}`);
  }
}
