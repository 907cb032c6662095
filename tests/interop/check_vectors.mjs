// Reads wire/vectors/*.json and checks them with Node's own crypto and the decoder beside this file.
//
//   node check_vectors.mjs FOLDER [--only NAME] [--json]   (several folders: each is checked by itself)
//
// Prints what was checked, and every fault; exits with 1 if there is one. BLAKE3 is not part of Node's crypto, so
// blob IDs are left to the tests in Python.

import fs from "node:fs";
import path from "node:path";

import { DOMAIN, Fault, checkChain, checkRevocation, covers, isEnvelope, selfCertifiedPrefix } from "./authority.mjs";
import { decode, encode } from "./msgpack.mjs";
import { base32, publicOf, sha256, signedBytes, verifies } from "./primitives.mjs";
import { MESSAGES, checkRefusal, checkSession, readMessage } from "./session.mjs";

const CID = /^ioc:((?:[a-z]{2}|p2p)\.(?:n0|r[0-9]{4}|i[a-z0-9]{2,8})\.(?:[0-9]{5}|k[a-z2-7]{52}))\/((?:gen|ai|sup|edge)(?:\/[a-z0-9][a-z0-9_-]{0,31}){2,4})$/;
const hex = (text) => Buffer.from(text.replace(/^hex:/, ""), "hex");
const u32 = (number) => Buffer.from(number.toString(16).padStart(8, "0"), "hex");
const u64 = (number) => Buffer.from(number.toString(16).padStart(16, "0"), "hex");

/** One folder's check: its files, what was counted, what was wrong. */
class Checking {
  constructor(folder) {
    this.folder = folder;
    this.counts = {};
    this.faults = [];
    this.file = "";
    this.people = {};
    for (const [name, person] of Object.entries(this.load("identities").people)) this.people[name] = hex(person.public_key);
    this.expect = (condition, what) => {
      if (!condition) this.faults.push(`${this.file}: ${what}`);
    };
  }

  load(name) {
    return JSON.parse(fs.readFileSync(path.join(this.folder, `${name}.json`), "utf8"));
  }

  count(what, number = 1) {
    this.counts[what] = (this.counts[what] ?? 0) + number;
  }

  run(name) {
    this.file = name;
    try {
      const found = this.load(name);
      for (const vector of nested(found)) this.struct(vector, name);
      CHECKS[name]?.(this, found);
    } catch (error) {
      this.faults.push(`${name}: ${error.message}`);
    }
  }

  /** Whatever looks like a struct, or like an envelope with its signer. */
  struct(vector, file) {
    if ("type" in vector && "fields" in vector && "bytes" in vector) {
      const read = decode(hex(vector.bytes));
      const fields = "tag" in vector ? read.slice(1) : read;
      this.expect(!("tag" in vector) || read[0] === vector.tag, `${vector.type}: tag`);
      this.expect(same(fields, vector.fields), `${vector.type}: its bytes are not its fields`);
      this.count("structs decoded");
      if (file !== "structs") this.envelopes(read, vector.type);
    }
    if ("signer" in vector && "envelope" in vector) {
      const [domain, kind, payload, key] = decode(hex(vector.envelope.bytes));
      this.expect(key.equals(this.people[vector.signer]), `${kind}: not signed by ${vector.signer}`);
      this.expect(payload.equals(hex(vector.payload.bytes)), `${kind}: payload`);
      this.expect(signedBytes(domain, kind, payload).equals(hex(vector.signed_bytes)), `${kind}: signed bytes`);
    }
  }

  /** Verify every envelope at any depth of a decoded value. */
  envelopes(value, where) {
    if (isEnvelope(value)) {
      const [domain, kind, payload, key, signature] = value;
      this.expect(verifies(key, signature, signedBytes(domain, kind, payload)), `${where}: signature of a ${kind}`);
      this.count("signatures verified");
      this.envelopes(decode(payload), `${where}, ${kind}`);
    } else if (Array.isArray(value)) {
      for (const item of value) this.envelopes(item, where);
    }
  }
}

const CHECKS = {
  identities(checking, found) {
    for (const [name, person] of Object.entries(found.people)) {
      const key = publicOf("ed25519", hex(person.private_key));
      checking.expect(hex(person.private_key).equals(sha256(Buffer.from(name))), `${name}: private key`);
      checking.expect(key.equals(hex(person.public_key)), `${name}: public key`);
      checking.expect(sha256(key).equals(hex(person.node_id)), `${name}: node ID`);
      checking.expect(person.node_id_text === "n" + base32(sha256(key)), `${name}: node ID as text`);
      checking.expect(person.self_certified_prefix === selfCertifiedPrefix(key), `${name}: prefix`);
      checking.count("identities");
    }
    for (const network of found.networks) {
      const { name, admission, threshold, root_keys: keys, nonce } = network;
      const data = encode(["ioc/1", "network", name, admission, threshold, keys.map(hex), hex(nonce)]);
      checking.expect(data.equals(hex(network.bytes)), `network ${name}: bytes`);
      checking.expect(sha256(data).equals(hex(network.network_id)), `network ${name}: ID`);
      checking.count("networks");
    }
  },

  identifiers(checking, found) {
    for (const { text, prefix, path: parts, key } of found.good) {
      const match = CID.exec(text);
      checking.expect(match?.[1] === prefix && match[2] === parts.join("/"), `${text}: grammar`);
      checking.expect(sha256(Buffer.from(text)).equals(hex(key)), `${text}: key`);
      checking.count("identifiers");
    }
    for (const text of found.bad) {
      const match = CID.exec(text);
      const city = match?.[2].split("/")[1];
      checking.expect(match === null || (match[1].startsWith("cn.") && !/^[0-9]{4}$/.test(city)), `${text}: is refused`);
    }
    for (const pair of found.covers) checking.expect(covers(pair.outer, pair.inner) === pair.covers, `covers ${pair.inner}`);
  },

  authority(checking, found) {
    for (const vector of found.chains) {
      const data = hex(vector.bytes);
      checking.expect(sha256(data).equals(hex(vector.chain_hash)), `${vector.name}: chain hash`);
      const links = decode(data);
      checking.expect(links.length === vector.links.length, `${vector.name}: links`);
      links.forEach((link, n) =>
        checking.expect(same(link, vector.links[n].envelope.fields), `${vector.name}: link ${n + 1}`));
      const code = codeOf(() => checkChain(links, { roots: [found.root], now: vector.now }));
      checking.expect(code === vector.error, `${vector.name}: error ${code}, not ${vector.error}`);
      checking.count("chains");
    }
    for (const vector of found.revocations) {
      const news = decode(hex(vector.bytes));
      const code = codeOf(() => checkRevocation(news, { roots: [found.root], now: vector.now, certified: true }));
      checking.expect(code === vector.error, `revocation ${vector.name}: error ${code}, not ${vector.error}`);
      checking.expect(same(news[0], vector.revocation.envelope.fields), `revocation ${vector.name}: its envelope`);
      const name = sha256(hex(vector.revocation.envelope.bytes));
      checking.expect(name.equals(hex(vector.revocation_name)), `revocation ${vector.name}: its name`);
      checking.envelopes(news, vector.name);
      checking.count("revocations");
    }
    const { link, bytes, chain_hash: endorsed } = found.endorsement;
    const terms = { roots: [found.root], now: found.chains[0].now };
    checking.expect(codeOf(() => checkChain(decode(hex(bytes)), { ...terms, selfCertified: true })) === null, "endorsement");
    checking.expect(codeOf(() => checkChain(decode(hex(bytes)), terms)) === 4, "endorsement in a certified network");
    checking.expect(same(decode(hex(bytes))[0], link.envelope.fields), "endorsement: its envelope");
    checking.expect(sha256(hex(bytes)).equals(hex(endorsed)), "endorsement: chain hash");
  },

  catalogue(checking, found) {
    for (const { leaves, root } of found.merkle) {
      checking.expect(merkleRoot(leaves.map(hex)).equals(hex(root)), `Merkle root of ${leaves.length} leaves`);
      checking.count("Merkle trees");
    }
    const root = merkleRoot(found.entries.map((entry) => hex(entry.bytes)));
    checking.expect(root.equals(hex(found.entries_root)), "root of the entries");
  },

  work(checking, found) {
    const [definition, nonce] = [hex(found.definition.bytes), hex(found.nonce)];
    const id = sha256(u64(definition.length), definition, checking.people[found.owner], nonce);
    checking.expect(id.equals(hex(found.task_id)) && found.task_id_text === "t" + base32(id), "task ID");
    const usage = sha256(hex(found.signed.find(({ name }) => name === "usage").envelope.bytes));
    checking.expect(usage.equals(hex(found.receipt_id)) && found.receipt_id_text === "r" + base32(usage), "receipt ID");
  },

  bulk(checking, found) {
    const { claim, ticket } = found;
    const said = Buffer.concat([checking.people[claim.holder], hex(claim.nonce), hex(ticket.digest)]);
    const signed = signedBytes(DOMAIN, "bulk-claim", said);
    const { signature } = found.frames.find(({ type }) => type === "bulk.Claim").fields;
    checking.expect(signed.equals(hex(claim.signed_bytes)), "claim: signed bytes");
    checking.expect(verifies(checking.people[claim.reader], hex(signature), signed), "claim: signature");
    checking.count("signatures verified");
    found.frames.forEach(({ type, bytes, frame }, n) => {
      const header = Buffer.concat([Buffer.from([n + 1]), u32(hex(bytes).length)]);
      checking.expect(Buffer.concat([header, hex(bytes)]).equals(hex(frame)), `${type}: frame`);
    });
    const { index, length, bytes } = found.chunk_header;
    checking.expect(Buffer.concat([Buffer.from([0]), u32(length + 4), u32(index)]).equals(hex(bytes)), "CHUNK: header");
    const { nonce, size, probe, echo } = found.path_probe;
    for (const [kind, made] of [[8, probe], [9, echo]]) {
      const said = Buffer.concat([Buffer.from([kind]), Buffer.from("ioc-mtu"), hex(nonce)]);
      checking.expect(Buffer.concat([said, Buffer.alloc(size - said.length)]).equals(hex(made)), `path probe ${kind}`);
    }
    checking.expect(found.frames[0].fields.ticket === "hex:" + ticket.digest, "Hello: ticket");
    checking.expect(found.frames[2].fields.secret === "hex:" + ticket.secret, "Claim: secret");
  },

  dht(checking, found) {
    const links = found.chain.map(({ bytes }) => hex(bytes));
    const encoded = Buffer.concat([Buffer.from([0x90 + links.length]), ...links]);
    checking.expect(sha256(encoded).equals(hex(found.chain_hash)), "chain hash");
    const gone = found.signed.find(({ name }) => name === "tombstone");
    checking.expect(sha256(Buffer.from(gone.payload.fields.cid)).equals(hex(found.key)), "key of the identifier");
    for (const vector of found.messages) checkMessage(checking, readMessage(hex(vector.bytes)), vector);
    checking.expect(Object.keys(MESSAGES).every((tag) => found.messages.some((m) => m.tag === Number(tag))), "every type of message");
  },

  dht_session(checking, found) {
    const terms = {
      network: hex(found.network_id), roots: Object.values(found.roots), now: found.now,
      people: checking.people, expect: checking.expect,
    };
    for (const [name, key] of Object.entries(found.roots)) checking.expect(checking.people[name]?.equals(hex(key)), `root ${name}`);
    const names = new Set();
    for (const session of found.sessions) {
      const read = checkSession(session, terms);
      read.forEach(({ name }) => names.add(name));
      checking.count("handshakes recomputed");
      checking.count("packets decrypted", read.length);
      checking.count("signatures verified", 2);
    }
    for (const [name] of Object.values(MESSAGES)) checking.expect(names.has(name), `no ${name} was sent`);
    checking.count("types of message", names.size);
    for (const vector of found.refused) checkRefusal(vector, checking.expect);
  },
};

const FILES = ["identities", "identifiers", "authority", "catalogue", "work", "bulk", "datasets", "links", "dht", "dht_session", "structs"];

/** The code of the fault that a check throws, null without one. */
function codeOf(check) {
  try {
    check();
  } catch (error) {
    if (error instanceof Fault) return error.code;
    throw error;
  }
  return null;
}

function checkMessage(checking, message, vector) {
  checking.expect(vector.type === `dht.${message.name}`, `${vector.type}: is a ${message.name}`);
  checking.expect(Object.keys(vector.fields).join() === Object.keys(message.fields).join(), `${vector.type}: names of fields`);
}

function merkleRoot(leaves) {
  if (leaves.length === 0) return sha256();
  if (leaves.length === 1) return sha256(Buffer.from([0]), leaves[0]);
  let split = 1;
  while (2 * split < leaves.length) split *= 2;
  return sha256(Buffer.from([1]), merkleRoot(leaves.slice(0, split)), merkleRoot(leaves.slice(split)));
}

/** Every object of a JSON value, at any depth. */
function* nested(value) {
  if (value === null || typeof value !== "object") return;
  if (!Array.isArray(value)) yield value;
  for (const item of Object.values(value)) yield* nested(item);
}

/** Whether a decoded value is what the JSON says: objects of fields are arrays on the wire, or maps. */
function same(read, written) {
  if (Buffer.isBuffer(read)) return typeof written === "string" && written === "hex:" + read.toString("hex");
  if (typeof read === "bigint") return Number(read) === written;
  if (Array.isArray(read) && written !== null && typeof written === "object") {
    const items = Object.values(written);
    return items.length === read.length && read.every((item, n) => same(item, items[n]));
  }
  if (read !== null && typeof read === "object") {
    if (written === null || typeof written !== "object") return false;
    return Object.keys(read).join() === Object.keys(written).join() && Object.keys(read).every((name) => same(read[name], written[name]));
  }
  return read === written;
}

function main(words) {
  const asJson = words.includes("--json");
  const only = words.includes("--only") ? words[words.indexOf("--only") + 1] : null;
  const folders = words.filter((word, n) => !word.startsWith("--") && words[n - 1] !== "--only");
  if (folders.length === 0 || (only !== null && !FILES.includes(only))) {
    console.error("usage: node check_vectors.mjs FOLDER... [--only NAME] [--json]");
    return 2;
  }
  let faulty = false;
  for (const folder of folders) {
    const checking = new Checking(folder);
    for (const name of only === null ? FILES : [only]) checking.run(name);
    const { counts, faults } = checking;
    faulty ||= faults.length > 0;
    if (asJson) {
      console.log(JSON.stringify({ folder, counts, faults }));
    } else {
      for (const fault of faults) console.log(`fault: ${fault}`);
      for (const [what, number] of Object.entries(counts)) console.log(`${String(number).padStart(6)} ${what}`);
      console.log(faults.length === 0 ? `${folder}: all good` : `${folder}: ${faults.length} faults`);
    }
  }
  return faulty ? 1 : 0;
}

process.exitCode = main(process.argv.slice(2));
