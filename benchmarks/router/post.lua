-- wrk's request: an OpenAI chat body of about 1 KB. The environment says STREAM=1 for server-sent events, TRACE=1 for a head
-- that differs with every request (a W3C trace context and a request id).
-- The last line of the output is `RESULT` and a JSON object.
local filler = string.rep("Classify the customer message into one of the labels and answer in JSON. ", 10)
local stream = os.getenv("STREAM") == "1" and "true" or "false"
wrk.method = "POST"
wrk.body = '{"model":"bench-model","messages":[{"role":"system","content":"' .. filler ..
  '"},{"role":"user","content":"My parcel 48213 has not arrived and I would like a refund, please."}],' ..
  '"temperature":0.2,"max_tokens":128,"user":"user-1234","stream":' .. stream .. '}'
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer sk-bench"

if os.getenv("TRACE") == "1" then
  local number = 0
  request = function()
    number = number + 1
    wrk.headers["traceparent"] = string.format("00-0af7651916cd43dd%016x-%016x-01", number, number)
    wrk.headers["x-request-id"] = string.format("req-%d", number)
    return wrk.format()
  end
end

done = function(summary, latency, requests)
  local seconds = summary.duration / 1e6
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "requests_per_second": %.1f, "p50_ms": %.3f, "p99_ms": %.3f, "errors": %d}\n',
    summary.requests, summary.requests / seconds, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
