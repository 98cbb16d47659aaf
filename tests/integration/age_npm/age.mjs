// Usage: node age.mjs FOLDER-WITH-NODE_MODULES encrypt|decrypt|recipient < input > output
// The key comes in AGE_KEY: a recipient to encrypt, an identity otherwise; or a passphrase in AGE_PASSPHRASE.
import { pathToFileURL } from "node:url";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";

const [folder, action] = process.argv.slice(2);
const entry = join(folder, "node_modules", "age-encryption", "dist", "index.js");
const { Encrypter, Decrypter, identityToRecipient } = await import(pathToFileURL(entry));
const { AGE_KEY: key, AGE_PASSPHRASE: passphrase } = process.env;

async function encrypt(input) {
  const encrypter = new Encrypter();
  if (passphrase) {
    encrypter.setScryptWorkFactor(10);
    encrypter.setPassphrase(passphrase);
  } else {
    encrypter.addRecipient(key);
  }
  return encrypter.encrypt(input);
}

async function decrypt(input) {
  const decrypter = new Decrypter();
  if (passphrase) decrypter.addPassphrase(passphrase);
  else decrypter.addIdentity(key);
  return decrypter.decrypt(input);
}

const actions = { encrypt, decrypt, recipient: () => identityToRecipient(key) };
process.stdout.write(await actions[action](new Uint8Array(await buffer(process.stdin))));
