-- The calls of the last `given.window_ms`, in SLICES that age one by one; needs breaker_state.lua before it.
-- The field slice:N of the hash holds where the slice starts (ms), its calls and its failures. Slice N is used again
-- after a whole window.
local SLICES = 10
local slice_ms = math.ceil(given.window_ms / SLICES)

local function slice(name)
  local start, calls, failures = string.match(breaker[name] or '0 0 0', '(%d+) (%d+) (%d+)')
  return tonumber(start), tonumber(calls), tonumber(failures)
end

local function counted(failed)
  local start = now_ms - now_ms % slice_ms
  local name = 'slice:' .. start / slice_ms % SLICES
  local before, calls, failures = slice(name)
  if before ~= start then
    calls, failures = 0, 0
  end
  return name, string.format('%d %d %d', start, calls + 1, failures + failed)
end

local function window()
  local all_calls, all_failures = 0, 0
  for n = 0, SLICES - 1 do
    local start, calls, failures = slice('slice:' .. n)
    if start > now_ms - SLICES * slice_ms and start <= now_ms then
      all_calls, all_failures = all_calls + calls, all_failures + failures
    end
  end
  return all_calls, all_failures
end
