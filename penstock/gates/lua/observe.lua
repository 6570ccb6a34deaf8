-- Learn from the usage of one answer: how the real prompt compares with what was counted, and how long outputs are.
--
-- KEYS     1 what is known of a model under a prompt version (hash)
-- ARGV[1]  {counted?, prompt?, output?}: tokens; without them nothing is learnt, only told
-- Returns  {answers, factor, output_p99?}: answers seen; real prompt tokens per counted one; the tokens that 99 of 100
--          outputs keep to, once 100 are known
--
-- Fields: `answers`, `factor` (an average that forgets, the newest answer weighing 5 %), `outputs`, and `o:K`, the number
-- of outputs of at most 1.1^K tokens. When 2,000 outputs are known, all counts are halved: the old count less.
local WEIGHT, BASE, ENOUGH, MOST = 0.05, 1.1, 100, 2000
local TTL_MS = 30 * 86400 * 1000
local given = cjson.decode(ARGV[1])
local known, raw = {}, redis.call('HGETALL', KEYS[1])
for i = 1, #raw, 2 do known[raw[i]] = tonumber(raw[i + 1]) end
local answers, factor, outputs = known.answers or 0, known.factor or 1, known.outputs or 0

if given.counted then
  answers = answers + 1
  factor = factor + math.max(WEIGHT, 1 / answers) * (given.prompt / math.max(1, given.counted) - factor)
  local bucket = 'o:' .. math.max(0, math.ceil(math.log(math.max(1, given.output)) / math.log(BASE) - 1e-9))
  known[bucket], outputs = (known[bucket] or 0) + 1, outputs + 1
  if outputs >= MOST then
    outputs = 0
    for name, count in pairs(known) do
      if name:sub(1, 2) == 'o:' then
        known[name] = math.floor(count / 2)
        outputs = outputs + known[name]
      end
    end
  end
  known.answers, known.factor, known.outputs = answers, factor, outputs
  local fields = {}
  for name, value in pairs(known) do
    fields[#fields + 1] = name
    fields[#fields + 1] = tostring(value)
  end
  redis.call('HSET', KEYS[1], unpack(fields))
  redis.call('PEXPIRE', KEYS[1], TTL_MS)
end

local p99
if outputs >= ENOUGH then
  local left, highest = math.floor(outputs * 0.01), 0
  for name in pairs(known) do
    if name:sub(1, 2) == 'o:' then highest = math.max(highest, tonumber(name:sub(3))) end
  end
  for k = highest, 0, -1 do
    left = left - (known['o:' .. k] or 0)
    if left < 0 then
      p99 = math.ceil(BASE ^ k)
      break
    end
  end
end
return cjson.encode({answers = answers, factor = factor, output_p99 = p99})
