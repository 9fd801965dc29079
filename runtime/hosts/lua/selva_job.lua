-- Starts selva-generate for a host that has Lua and nothing else, and follows it through files.
--
-- Lua cannot start a process without waiting for it, nor end one. So a runner (a script for sh or PowerShell) does:
-- it starts the command, writes its exit code to the file `exit`, and ends it when the file `cancel` appears. The host
-- only looks at files, and never waits. Plain Lua 5.1 to 5.4; the folder of this file also has selva_json.lua.

return function(json)
  local job = {}

  local LONGEST_FILE, STARTS_WITHIN_S = 4 * 1024 * 1024, 30
  local NO_WORKER = "no worker is running"
  job.INSTALL = "pip install 'selva-deploy[cpu]'"

  function job.read(path)
    local file = io.open(path, "rb")
    if not file then return nil end
    local text = file:read(LONGEST_FILE)
    file:close()
    return text or ""
  end

  local function write(path, text)
    local file = io.open(path, "wb")
    if not file then return false end
    local written = file:write(text)
    return file:close() and written and true or false
  end

  function job.exists(path)
    local file = io.open(path, "rb")
    if file then file:close() end
    return file ~= nil
  end

  -- The command ----------------------------------------------------------------------------------------------------

  local function places(windows, getenv)
    local found = {}
    for folder in (getenv("PATH") or ""):gmatch(windows and "[^;]+" or "[^:]+") do found[#found + 1] = folder end
    local home = getenv(windows and "USERPROFILE" or "HOME") or ""
    -- A host that was not started from a shell has a short PATH; these are where pip, pipx and uv put commands.
    if windows then
      found[#found + 1] = home .. "\\.local\\bin"
      for minor = 14, 11, -1 do
        found[#found + 1] = (getenv("LOCALAPPDATA") or "") .. "\\Programs\\Python\\Python3" .. minor .. "\\Scripts"
        found[#found + 1] = (getenv("APPDATA") or "") .. "\\Python\\Python3" .. minor .. "\\Scripts"
      end
    else
      for _, folder in ipairs({ home .. "/.local/bin", "/opt/homebrew/bin", "/usr/local/bin" }) do
        found[#found + 1] = folder
      end
      for minor = 14, 11, -1 do
        found[#found + 1] = home .. "/Library/Python/3." .. minor .. "/bin"
        found[#found + 1] = "/Library/Frameworks/Python.framework/Versions/3." .. minor .. "/bin"
      end
    end
    return found
  end

  -- Return the path of selva-generate: the setting if the file is there, else the first of PATH and the usual places.
  -- Return nil if there is none.
  function job.find_command(setting, windows, getenv)
    if setting ~= "" then return job.exists(setting) and setting or nil end
    local name = windows and "\\selva-generate.exe" or "/selva-generate"
    for _, folder in ipairs(places(windows, getenv)) do
      if job.exists(folder .. name) then return folder .. name end
    end
  end

  -- The request ----------------------------------------------------------------------------------------------------

  function job.trim(text)
    return (text:gsub("%c", " "):gsub("^%s+", ""):gsub("%s+$", ""))
  end

  -- Return the sounds of a line that has ; between them.
  function job.prompts(line)
    local found = {}
    for part in line:gmatch("[^;]+") do
      local prompt = job.trim(part)
      if prompt ~= "" then found[#found + 1] = prompt end
    end
    return found
  end

  local function decimal(number)
    return (string.format("%.6f", number):gsub(",", "."))  -- some hosts set a locale with a comma
  end

  -- Return the arguments of a request: `video`, `prompts`, `out`, `start_s`, `duration_s`, and as text, where "" leaves
  -- it to the command: `negative`, `takes`, `seed`. Return nil and a line if a number is none.
  function job.arguments(request, worker)
    local found = { request.video, "--out=" .. request.out, "--json", "--deliver=post",
      "--start=" .. decimal(request.start_s), "--duration=" .. decimal(request.duration_s) }
    for _, prompt in ipairs(request.prompts) do found[#found + 1] = "--prompt=" .. prompt end
    for _, name in ipairs({ "takes", "seed" }) do
      local text = job.trim(request[name])
      if text ~= "" and not text:match("^%d+$") then
        return nil, name .. " is '" .. text .. "'; give a whole number, such as 1"
      end
      if text ~= "" then found[#found + 1] = "--" .. name .. "=" .. text end
    end
    if job.trim(request.negative) ~= "" then found[#found + 1] = "--negative=" .. job.trim(request.negative) end
    if worker then found[#found + 1] = "--worker" end
    return found
  end

  -- The runner -----------------------------------------------------------------------------------------------------

  function job.for_sh(argument)
    return "'" .. argument:gsub("'", "'\\''") .. "'"
  end

  -- Quote one argument as Windows programs read their command line: backslashes count only before a quotation mark.
  function job.for_windows(argument)
    return '"' .. argument:gsub('(\\*)"', '%1%1\\"'):gsub("(\\+)$", "%1%1") .. '"'
  end

  -- PowerShell takes typographic quotation marks (U+2018 to U+201B) for single ones too.
  local function for_powershell(text)
    return "'" .. text:gsub("'", "''"):gsub("\226\128[\152-\155]", "%0%0") .. "'"
  end

  local function each(list, quote)
    local found = {}
    for number, item in ipairs(list) do found[number] = quote(item) end
    return table.concat(found, " ")
  end

  local SH = [[
# Started by a host program. `cancel` ends the command; `exit` gets its exit code.
cd "${0%%/*}" || exit 1
export PYTHONUTF8=1
%s >report.json 2>selva.log </dev/null &
child=$!
(while kill -0 $child 2>/dev/null; do
  if [ -e cancel ]; then kill -TERM $child; exit; fi
  sleep 0.2 || exit
done) &
wait $child
echo $? >exit.part && mv exit.part exit
]]

  local POWERSHELL = "\239\187\191" .. [[
# Started by a host program. 'cancel' ends the command; 'exit' gets its exit code.
Set-Location -LiteralPath $PSScriptRoot
$env:PYTHONUTF8 = '1'
$code = 1
try {
  $child = Start-Process -FilePath %s -ArgumentList %s -NoNewWindow -PassThru `
    -RedirectStandardOutput report.json -RedirectStandardError selva.log
  $null = $child.Handle  # without it there is no exit code
  while (-not $child.WaitForExit(200)) {
    if (Test-Path cancel) { taskkill /PID $child.Id /T /F | Out-Null }
  }
  $code = $child.ExitCode
} catch {
  Set-Content -Path selva.log -Value "error: $_"
}
Set-Content -Path exit.part -Value $code
Move-Item exit.part exit
]]

  -- Return name and text of the runner, and the command line that starts it from its folder.
  function job.runner(command, arguments, windows)
    if windows then
      local line = each(arguments, job.for_windows)
      return "run.ps1", (string.format(POWERSHELL:gsub("\n", "\r\n"), for_powershell(command), for_powershell(line)))
    end
    return "run.sh", string.format(SH, job.for_sh(command) .. " " .. each(arguments, job.for_sh))
  end

  -- A run ----------------------------------------------------------------------------------------------------------

  local Run = {}
  Run.__index = Run

  -- Start a run. `launch(path, windows)` starts the runner and returns at once, false if it could not. A worker does
  -- it if one runs. Returns nil and a line if it could not begin.
  function job.start(command, request, windows, launch, clock)
    local run = setmetatable({
      command = command, request = request, windows = windows, launch = launch, clock = clock, folder = request.out,
    }, Run)
    local begun, why = run:begin(true)
    if not begun then return nil, why end
    return run
  end

  function Run:path(name)
    return self.folder .. (self.windows and "\\" or "/") .. name
  end

  function Run:begin(worker)
    local arguments, why = job.arguments(self.request, worker)
    if not arguments then return nil, why end
    local name, text = job.runner(self.command, arguments, self.windows)
    self.worker, self.runner, self.since_s = worker, name, self.clock()
    os.remove(self:path("exit"))
    if not write(self:path(name), text) then return nil, "cannot write to " .. self.folder end
    if not self.launch(self:path(name), self.windows) then return nil, "cannot start " .. self:path(name) end
    return true
  end

  function Run:cancel()
    if not self.cancelled then self.cancelled = write(self:path("cancel"), "") end
  end

  -- Return the last line that the command said, for the user to see.
  function Run:said()
    local last
    for line in (job.read(self:path("selva.log")) or ""):gmatch("[^\r\n]+") do last = line end
    return last or ""
  end

  -- Return the lines of the log that begin with one of these words, without it.
  function Run:lines(kind)
    local found = {}
    for line in (job.read(self:path("selva.log")) or ""):gmatch("[^\r\n]+") do
      found[#found + 1] = line:match("^" .. kind .. ": (.*)$")
    end
    return found
  end

  local function report_of(self)
    local found, why = json.decode(job.read(self:path("report.json")) or "")
    if type(found) ~= "table" then return nil, "the report cannot be read: " .. tostring(why) end
    return found
  end

  -- Return "running"; or "done" and the report; or "failed" and what to tell; or "cancelled".
  function Run:poll()
    local code = job.read(self:path("exit"))
    if not code then
      local begun = job.exists(self:path("selva.log"))
      if begun or self.clock() - self.since_s < STARTS_WITHIN_S then return "running" end
      return self:ended("failed", "the command did not start within " .. STARTS_WITHIN_S .. " seconds")
    end
    if self.cancelled then return self:ended("cancelled") end
    local report, why = report_of(self)
    if tonumber(code) == 0 and report then return self:ended("done", report) end
    local message = report and report.error or self:lines("error")[1] or why or ""
    if self.worker and message:find(NO_WORKER, 1, true) then
      local begun, fault = self:begin(false)
      if begun then return "running" end
      message = fault
    end
    return self:ended("failed", message .. " (exit code " .. tostring(tonumber(code)) .. ")")
  end

  function Run:ended(state, what)
    for _, name in ipairs({ self.runner, "exit", "cancel" }) do os.remove(self:path(name)) end
    if state == "failed" then what = what .. "\nLog: " .. self:path("selva.log") end
    return state, what
  end

  -- Return a new name for the folder of a run in `parent`, so that no run meets the files of another.
  function job.new_folder(parent, windows)
    local separator = windows and "\\" or "/"
    local stamp = parent .. separator .. os.date("%Y%m%d-%H%M%S")
    local name, number = stamp, 1
    while job.exists(name .. separator .. "selva.log") or job.exists(name .. separator .. "run.sh")
      or job.exists(name .. separator .. "run.ps1") do
      number = number + 1
      name = stamp .. "-" .. number
    end
    return name
  end

  return job
end
