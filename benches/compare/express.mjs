// What a tutorial has people build: check the signature, answer, handle the event in memory.
import { createHmac } from "node:crypto";
import express from "express";

const app = express();
app.use(express.json({ limit: "1mb" }));
app.post("/webhooks/bluereplies", (request, response) => {
  const expected = createHmac("sha256", process.env.WEBHOOK_SECRET).update(JSON.stringify(request.body)).digest("hex");
  if (request.headers["x-bluereplies-signature"] !== expected) {
    response.status(401).send("wrong signature");
    return;
  }
  response.status(200).send("OK");
});
app.listen(Number(process.env.PORT), "127.0.0.1");
