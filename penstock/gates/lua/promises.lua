-- Units that are promised and not sent yet. Included after pool.lua.
--
-- levels: per resource R `R.unsent`, a text: the units by the time (ms) at which the last of them is sent, "1850:300".
-- Their sender still draws on the bucket: it must have room for what flows in until then, and nothing may come back
-- into the place that they take.
local SLICE_MS = 10

local function unsent(pool, r, now)
  local slices = {}
  for at, units in string.gmatch(pool[r.name .. '.unsent'] or '', '(%d+):(%S+)') do
    if tonumber(at) > now then slices[tonumber(at)] = tonumber(units) end
  end
  return slices
end

local function promise(pool, r, units, send_at, now)
  local slices, texts = unsent(pool, r, now), {}
  local at = math.ceil(send_at / SLICE_MS) * SLICE_MS
  slices[at] = (slices[at] or 0) + units
  for time, promised in pairs(slices) do
    if promised > 0 then texts[#texts + 1] = string.format('%.0f:%.0f', time, promised) end
  end
  pool[r.name .. '.unsent'] = table.concat(texts, ' ')
end

-- The highest level that leaves them their place: before each is sent, the level may have risen to the capacity less it
-- and those after it.
local function highest_level(pool, r, now)
  local slices, times, later, highest = unsent(pool, r, now), {}, 0, r.capacity
  for time in pairs(slices) do times[#times + 1] = time end
  table.sort(times, function(one, other) return one > other end)
  for _, time in ipairs(times) do
    later = later + slices[time]
    highest = math.min(highest, r.capacity - later - (time - now) / 1000 * r.rate)
  end
  return highest
end
