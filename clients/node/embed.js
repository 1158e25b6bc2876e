// All three embeddings of a text: node embed.js [host:port]
import { credentials, loadPackageDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { fileURLToPath } from "node:url";

const protos = fileURLToPath(new URL("../../protos", import.meta.url));
const definition = loadSync("trivec/v1/embedding.proto", { includeDirs: [protos], keepCase: true, enums: String });
const { EmbeddingService } = loadPackageDefinition(definition).trivec.v1;

const client = new EmbeddingService(process.argv[2] ?? "127.0.0.1:8001", credentials.createInsecure());
client.Embed({ texts: ["人工智能"], modes: ["MODE_HYBRID"] }, (error, response) => {
  if (error) {
    console.error(`error: ${error.details}`);
    process.exit(1);
  }
  const { dense, sparse, multi_vector } = response.embeddings[0];
  console.log(`dense ${dense.values.length}, sparse ${sparse.ids.length}, multi-vector ${multi_vector.rows} rows`);
  client.close();
});
