// The usual repair: a queue in Redis, which is asked before the answer. No worker runs: jobs are only stored.
import { createHmac } from "node:crypto";
import { Queue } from "bullmq";
import express from "express";

const queue = new Queue("events", { connection: { host: "127.0.0.1", port: Number(process.env.REDIS_PORT) } });
const app = express();
app.use(express.json({ limit: "1mb" }));
app.post("/webhooks/bluereplies", async (request, response) => {
  const expected = createHmac("sha256", process.env.WEBHOOK_SECRET).update(JSON.stringify(request.body)).digest("hex");
  if (request.headers["x-bluereplies-signature"] !== expected) {
    response.status(401).send("wrong signature");
    return;
  }
  await queue.add(request.body.type, request.body, { jobId: request.body.eventId });
  response.status(200).send("OK");
});
await queue.waitUntilReady();
app.listen(Number(process.env.PORT), "127.0.0.1");
