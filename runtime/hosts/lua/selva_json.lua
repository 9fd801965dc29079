-- Reads JSON. Plain Lua 5.1 to 5.4, because hosts bring no JSON reader.

local json = {}

local LONGEST, DEEPEST = 4 * 1024 * 1024, 32
local ESCAPES = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t", ['"'] = '"', ["\\"] = "\\", ["/"] = "/" }

local function utf8_of(code)
  if code < 0x80 then
    return string.char(code)
  elseif code < 0x800 then
    return string.char(0xC0 + math.floor(code / 0x40), 0x80 + code % 0x40)
  elseif code < 0x10000 then
    return string.char(0xE0 + math.floor(code / 0x1000), 0x80 + math.floor(code / 0x40) % 0x40, 0x80 + code % 0x40)
  end
  return string.char(0xF0 + math.floor(code / 0x40000), 0x80 + math.floor(code / 0x1000) % 0x40,
    0x80 + math.floor(code / 0x40) % 0x40, 0x80 + code % 0x40)
end

local function unescape(body)
  local function surrogates(high, low)
    local first, second = tonumber(high, 16), tonumber(low, 16)
    if first >= 0xD800 and first < 0xDC00 and second >= 0xDC00 and second < 0xE000 then
      return utf8_of(0x10000 + (first - 0xD800) * 0x400 + second - 0xDC00)
    end
  end
  -- An escaped backslash is hidden first, so that `\\u0041` stays what it is.
  body = body:gsub("\\\\", "\\\0")
  body = body:gsub("\\u([dD][89abAB]%x%x)\\u([dD][c-fC-F]%x%x)", surrogates)
  body = body:gsub("\\u(%x%x%x%x)", function(digits) return utf8_of(tonumber(digits, 16)) end)
  body = body:gsub('\\([bfnrt"/])', ESCAPES)
  return (body:gsub("\\%z", "\\"))
end

local function fail(at, what)
  error({ json = "not JSON at byte " .. at .. ": " .. what }, 0)
end

local value

local function string_at(text, at)
  local from = at + 1
  local stop = from
  while true do
    stop = text:find('["\\]', stop)
    if not stop then fail(at, "a string does not end") end
    if text:byte(stop) == 34 then break end
    stop = stop + 2
  end
  return unescape(text:sub(from, stop - 1)), stop + 1
end

local function skip(text, at)
  return text:find("[^ \t\r\n]", at) or #text + 1
end

local function list_at(text, at, deep)
  local found = {}
  at = skip(text, at + 1)
  if text:sub(at, at) == "]" then return found, at + 1 end
  while true do
    found[#found + 1], at = value(text, at, deep + 1)
    at = skip(text, at)
    local mark = text:sub(at, at)
    if mark == "]" then return found, at + 1 end
    if mark ~= "," then fail(at, "a list goes on with , or ]") end
    at = skip(text, at + 1)
  end
end

local function object_at(text, at, deep)
  local found = {}
  at = skip(text, at + 1)
  if text:sub(at, at) == "}" then return found, at + 1 end
  while true do
    if text:sub(at, at) ~= '"' then fail(at, "a name is expected") end
    local name
    name, at = string_at(text, at)
    at = skip(text, at)
    if text:sub(at, at) ~= ":" then fail(at, "a colon is expected") end
    found[name], at = value(text, skip(text, at + 1), deep + 1)
    at = skip(text, at)
    local mark = text:sub(at, at)
    if mark == "}" then return found, at + 1 end
    if mark ~= "," then fail(at, "an object goes on with , or }") end
    at = skip(text, at + 1)
  end
end

local WORDS = { ["true"] = true, ["false"] = false }

value = function(text, at, deep)
  if deep > DEEPEST then fail(at, "too deep") end
  local mark = text:sub(at, at)
  if mark == '"' then return string_at(text, at) end
  if mark == "{" then return object_at(text, at, deep) end
  if mark == "[" then return list_at(text, at, deep) end
  local word = text:match("^%a+", at)
  if word == "null" or WORDS[word] ~= nil then return WORDS[word], at + #word end
  local number = text:match("^-?%d+%.?%d*[eE]?[+-]?%d*", at)
  local read = number and tonumber(number)
  if not read then fail(at, "no value") end
  return read, at + #number
end

-- Return the value, with null as nil. On a fault return nil and a line that says where.
function json.decode(text)
  if #text > LONGEST then return nil, "longer than " .. LONGEST .. " bytes" end
  local read, found, at = pcall(value, text, skip(text, 1), 0)
  if not read then return nil, type(found) == "table" and found.json or tostring(found) end
  if skip(text, at) <= #text then return nil, "not JSON at byte " .. at .. ": something follows" end
  return found
end

return json
