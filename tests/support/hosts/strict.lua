-- Makes tables of functions that accept only what is published: every name, number and type of arguments is checked.

local strict = {}

local function kind_of(value)
  if type(value) == "table" and value.kind then return value.kind end
  if type(value) == "number" and value == math.floor(value) then return "integer" end
  return type(value)
end

-- Whether a value may stand where a type is published. Objects of the host are tables with a `kind`.
local function fits(value, wanted)
  local kind = kind_of(value)
  return kind == wanted or (wanted == "number" and kind == "integer") or (wanted == "identifier" and value.kind ~= nil)
end

-- Read "string title, integer n, optional string more" as a list of {type, name, optional}.
local function parameters(text)
  local found = {}
  for part in text:gmatch("[^,]+") do
    local rest, optional = part:gsub("^%s*optional%s+", "")
    local wanted, name = rest:match("^%s*([%w_]+)%s+([%w_.]+)%s*$")
    assert(wanted, "not a parameter: " .. part)
    found[#found + 1] = { wanted = wanted, name = name, optional = optional > 0 }
  end
  return found
end

function strict.check(called, wanted, ...)
  local given = select("#", ...)
  if given > #wanted then error(called .. " takes " .. #wanted .. " arguments, not " .. given, 3) end
  for number, parameter in ipairs(wanted) do
    local value = select(number, ...)
    if number > given or (value == nil and parameter.optional) then
      if not parameter.optional then error(called .. ": " .. parameter.name .. " is missing", 3) end
    elseif not fits(value, parameter.wanted) then
      error(called .. ": " .. parameter.name .. " is a " .. kind_of(value) .. ", not a " .. parameter.wanted, 3)
    end
  end
end

-- Make the table `prefix` of published lines such as "boolean ok = reaper.Name(string title)" and of what they do.
-- With `self`, they are methods of that kind of object, published as "Timeline:Name(string title)".
function strict.table(prefix, published, functions, self)
  local found = {}
  for line in published:gmatch("[^\n]+") do
    local name, inside = line:match(prefix .. "[.:]([%w_]+)%((.-)%)")
    if name then
      local wanted = parameters(inside)
      if self then table.insert(wanted, 1, { wanted = self, name = "the object" }) end
      found[name] = function(...)
        strict.check(prefix .. "." .. name, wanted, ...)
        return functions[name](...)
      end
    end
  end
  for name in pairs(functions) do assert(found[name], name .. " is not published") end
  return setmetatable(found, {
    __index = function(_, name) error(prefix .. "." .. tostring(name) .. " is not published", 2) end,
  })
end

return strict
