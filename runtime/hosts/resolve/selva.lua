-- SelVA: stems for the video clip under the playhead, on new named audio tracks of the timeline.
--
-- Never run in DaVinci Resolve: tests play its API (see README.md). Resolve 19.1 or newer, free or Studio.
-- The free version has no dialogs, so a timeline marker asks and answers: its name has the sounds, its note the options.
-- All times are counted in whole frames of the timeline, as everything in Resolve's API.

local SETTINGS = {
  command = "",  -- path of selva-generate; "" looks in PATH and where pip, pipx and uv put commands
  folder = "",   -- where the stems go; "" is a folder SelVA beside the video
}

local MARK, BIN, POLL_S = "selva:", "SelVA", 0.5
local HELP = "= Write the sounds after selva: with ; between them, then run the script again."
local OPTIONS = { takes = "1", seed = "0", negative = "" }

local windows = package.config:sub(1, 1) == "\\"
local separator = windows and "\\" or "/"

local function load_lua(name)
  return dofile(fu:MapPath("Scripts:Utility/SelVA/" .. name))
end

local job = load_lua("selva_job.lua")(load_lua("selva_json.lua"))

-- The marker that asks -----------------------------------------------------------------------------------------------

-- Frames of markers count from the timeline's first frame, those of clips from the timecode 00:00:00:00.
local function find_marker(timeline, begin, stop)
  local first = timeline:GetStartFrame()
  local found
  for frame, marker in pairs(timeline:GetMarkers() or {}) do
    local at = first + frame
    if at >= begin and at < stop and marker.name:sub(1, #MARK):lower() == MARK and (not found or frame < found.frame) then
      found = { frame = frame, name = marker.name, note = marker.note or "", duration = marker.duration }
    end
  end
  return found
end

local function add_template(timeline, begin)
  local first = timeline:GetStartFrame()
  local note = "takes: 1\nseed: 0\nnegative:\n" .. HELP
  for frame = begin - first, begin - first + 9 do  -- a frame that has a marker takes no other
    if timeline:AddMarker(frame, "Purple", MARK .. " ", note, 1) then return true end
  end
  return false
end

-- Write the outcome into the marker, whose colour shows it too.
local function answer(timeline, marker, colour, text)
  print("SelVA: " .. text)
  if not marker then return end
  local lines = {}
  for line in marker.note:gmatch("[^\n]+") do
    if not line:match("^%s*=") then lines[#lines + 1] = line end
  end
  for line in text:gmatch("[^\n]+") do lines[#lines + 1] = "= " .. line end
  timeline:DeleteMarkerAtFrame(marker.frame)
  timeline:AddMarker(marker.frame, colour, marker.name, table.concat(lines, "\n"), marker.duration)
end

-- Return what a marker asks for, or nil and a line.
local function request_of(marker)
  local request = { prompts = job.prompts(marker.name:sub(#MARK + 1)) }
  if #request.prompts == 0 then return nil, HELP:sub(3) end
  for name, usual in pairs(OPTIONS) do request[name] = usual end
  for line in marker.note:gmatch("[^\r\n]+") do
    local name, text = line:match("^%s*(%a+)%s*:%s*(.-)%s*$")
    if name and OPTIONS[name] then
      request[name] = text
    elseif not line:match("^%s*=") and line:match("%S") then
      return nil, "The note has '" .. line .. "'; lines are takes: 2, seed: 7 or negative: music."
    end
  end
  return request
end

-- The clip -----------------------------------------------------------------------------------------------------------

-- Return the exact frame rate: 23.976 is 24000/1001, "29.97 DF" is 30000/1001.
local function exact_rate(setting)
  local written = tonumber(tostring(setting):match("%d+%.?%d*"))
  if not written then return nil end
  local whole = math.floor(written + 0.5)
  return math.abs(written - whole / 1.001) < 0.01 and whole / 1.001 or written
end

-- Whether a clip plays at another speed than its file. Resolve tells no speed, but which frames of the file it uses.
local function has_speed(item, clip, rate)
  local known, used = pcall(function() return item:GetSourceEndFrame() - item:GetSourceStartFrame() end)
  local file_rate = exact_rate(clip:GetClipProperty("FPS"))
  if not known or not file_rate then return false end
  local expected = item:GetDuration() * file_rate / rate
  return math.abs(used - expected) > 2 + 0.01 * expected
end

-- Return the frames of the timeline to use: those of the clip, or of them those between the timeline's in and out.
local function range_of(timeline, item)
  local begin, stop = item:GetStart(), item:GetStart() + item:GetDuration()
  local known, marks = pcall(function() return timeline:GetMarkInOut() end)  -- since 19.1
  local video = known and marks and marks.video or {}
  local first = timeline:GetStartFrame()
  if video["in"] and video.out and first + video["in"] < stop and first + video.out >= begin then
    return math.max(begin, first + video["in"]), math.min(stop, first + video.out + 1)
  end
  return begin, stop
end

-- Return which part of which file the playhead is on and where it lies in the timeline, or nil and a line.
local function picture_of(timeline, item)
  local clip = item:GetMediaPoolItem()
  local video = clip and clip:GetClipProperty("File Path") or ""
  if video == "" then return nil, "The clip under the playhead has no video file." end
  local rate = exact_rate(timeline:GetSetting("timelineFrameRate"))
  if not rate then return nil, "The timeline's frame rate cannot be read." end
  if has_speed(item, clip, rate) then
    return nil, "The clip has a speed change. Use Render in Place first, or the way by .otio (see README.md)."
  end
  local begin, stop = range_of(timeline, item)
  return {
    video = video, begin = begin, rate = rate,
    start_s = (item:GetLeftOffset() + begin - item:GetStart()) / rate, duration_s = (stop - begin) / rate,
  }
end

-- The stems ----------------------------------------------------------------------------------------------------------

local function bin_of(pool)
  local root = pool:GetRootFolder()
  for _, folder in pairs(root:GetSubFolderList()) do
    if folder:GetName() == BIN then return folder end
  end
  return pool:AddSubFolder(root, BIN)
end

-- Import the files into the bin of stems. Return the clips by their paths.
local function import(pool, report)
  local files, clips, before = {}, {}, pool:GetCurrentFolder()
  for number, stem in ipairs(report.stems) do files[number] = stem.file end
  pool:SetCurrentFolder(bin_of(pool))
  for _, clip in pairs(pool:ImportMedia(files) or {}) do clips[clip:GetClipProperty("File Path")] = clip end
  pool:SetCurrentFolder(before)
  for _, file in ipairs(files) do
    if not clips[file] then error("Resolve did not import " .. file, 0) end
  end
  return clips
end

-- Put a stem on a new audio track at the first frame of the picture. Takes after the first are on disabled tracks.
local function add_stem(timeline, pool, picture, stem, clip)
  if not timeline:AddTrack("audio", "mono") then error("Resolve added no audio track", 0) end
  local track = timeline:GetTrackCount("audio")
  timeline:SetTrackName("audio", track, stem.take == 1 and stem.prompt or stem.prompt .. ", take " .. stem.take)
  local length_s = math.min(stem.duration_s, picture.duration_s)
  -- Frames of a sound file are those of a rate that Resolve gives it (24), whatever the timeline's. The end is exclusive.
  local file_rate = exact_rate(clip:GetClipProperty("FPS")) or picture.rate
  local placed = pool:AppendToTimeline({ {
    mediaPoolItem = clip, startFrame = 0, endFrame = length_s * file_rate,
    mediaType = 2, trackIndex = track, recordFrame = picture.begin,
  } })
  local item = placed and placed[1]
  if not item then error("Resolve did not put " .. stem.file .. " on the timeline", 0) end
  if item:GetStart() ~= picture.begin or math.abs(item:GetDuration() - length_s * picture.rate) > 1.5 then
    error(string.format("%s lies at frame %d and is %d frames long, not at %d and %.0f", stem.file, item:GetStart(),
      item:GetDuration(), picture.begin, length_s * picture.rate), 0)
  end
  if stem.take > 1 then timeline:SetTrackEnable("audio", track, false) end
end

-- Put all stems on their timeline, which the user may have left. Return nil, or a line if it failed.
local function place(project, timeline, picture, report)
  local pool, front = project:GetMediaPool(), project:GetCurrentTimeline()
  local elsewhere = not front or front:GetUniqueId() ~= timeline:GetUniqueId()
  if elsewhere then project:SetCurrentTimeline(timeline) end
  local placed, why = pcall(function()
    local clips = import(pool, report)
    for _, stem in ipairs(report.stems) do add_stem(timeline, pool, picture, stem, clips[stem.file]) end
  end)
  if elsewhere and front then project:SetCurrentTimeline(front) end
  if not placed then return tostring(why) end
end

-- The run ------------------------------------------------------------------------------------------------------------

local function launch(path)
  local line = "/bin/sh " .. job.for_sh(path) .. " >/dev/null 2>&1 &"
  if windows then
    line = 'start "" /min powershell.exe -NoProfile -NonInteractive -ExecutionPolicy Bypass -File "' .. path .. '"'
  end
  local code = os.execute(line)
  return code == 0 or code == true
end

local function start(request, picture)
  local command = job.find_command(SETTINGS.command, windows, os.getenv)
  if not command then
    return nil, "selva-generate is not found. Install it with " .. job.INSTALL .. ", or write its path into selva.lua."
  end
  local parent = SETTINGS.folder
  if parent == "" then parent = picture.video:match("^(.*)[/\\]") .. separator .. BIN end
  request.out = job.new_folder(parent, windows)
  request.video, request.start_s, request.duration_s = picture.video, picture.start_s, picture.duration_s
  bmd.createdir(request.out)
  return job.start(command, request, windows, launch, os.time)
end

-- Wait until a run has ended. Removing or renaming its marker cancels it.
local function follow(timeline, marker, run)
  while true do
    local state, what = run:poll()
    if state ~= "running" then return state, what end
    local there = (timeline:GetMarkers() or {})[marker.frame]
    if not there or there.name ~= marker.name then run:cancel() end
    bmd.wait(POLL_S)
  end
end

local function main()
  local project = Resolve():GetProjectManager():GetCurrentProject()
  local timeline = project and project:GetCurrentTimeline()
  local item = timeline and timeline:GetCurrentVideoItem()
  if not item then return print("SelVA: put the playhead on a video clip in the Edit page.") end
  local marker = find_marker(timeline, item:GetStart(), item:GetStart() + item:GetDuration())
  if not marker then
    local added = add_template(timeline, item:GetStart())
    return print(added and "SelVA: the clip has a marker now; " .. HELP:sub(3) or "SelVA: no marker could be added.")
  end
  local request, why = request_of(marker)
  if not request then return answer(timeline, marker, "Red", why) end
  local picture, fault = picture_of(timeline, item)
  if not picture then return answer(timeline, marker, "Red", fault) end
  local run, problem = start(request, picture)
  if not run then return answer(timeline, marker, "Red", problem) end
  answer(timeline, marker, "Yellow", "Generating; removing or renaming this marker cancels.")
  local state, what = follow(timeline, marker, run)
  if state == "cancelled" then return print("SelVA: cancelled.") end
  if state == "failed" then return answer(timeline, marker, "Red", what) end
  local failed = place(project, timeline, picture, what)
  if failed then return answer(timeline, marker, "Red", failed .. "\nThe stems are in " .. run.folder) end
  local warnings = table.concat(run:lines("warning"), "\n")
  answer(timeline, marker, "Green", "Done: " .. #what.stems .. " stems. " .. what.notice .. "\n" .. warnings)
end

main()
