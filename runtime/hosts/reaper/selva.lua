-- @description SelVA: stems for the selected video item, on new tracks below it
-- @about One synchronised stem for each sound that you name. Needs selva-generate; see README.md.
--
-- Never run in REAPER: tests play its API (see README.md). REAPER 6 or 7, no extensions.
-- `picture` is what was selected: which part of which file, and where its sound belongs.

local SECTION, TITLE, POLL_S = "selva", "SelVA stems", 0.2
local VALUES = "\n"  -- separates the values of the dialog; prompts may have commas

local windows = reaper.GetOS():find("^Win") ~= nil
local separator = windows and "\\" or "/"

local function tell(text)
  reaper.ShowMessageBox(text, TITLE, 0)
end

local function load_lua(name)
  local _, script = reaper.get_action_context()
  local folder = script:match("^(.*[/\\])") or ""
  for _, path in ipairs({ folder .. name, folder .. "../lua/" .. name }) do
    if reaper.file_exists(path) then return dofile(path) end
  end
  error(name .. " is missing: copy it beside " .. script, 0)
end

local job = load_lua("selva_job.lua")(load_lua("selva_json.lua"))

-- What is selected ---------------------------------------------------------------------------------------------------

-- Return the file of a take, where the take's source begins in it, and how many seconds of it there are.
-- Return nil and a line if it is no video.
local function file_of(take)
  local source = reaper.GetMediaItemTake_Source(take)
  local begin_s, left_s = 0, math.huge
  local kind = reaper.GetMediaSourceType(source, "")
  while kind == "SECTION" do
    local known, offset_s, length_s, reverse = reaper.PCM_Source_GetSectionInfo(source)
    local parent = reaper.GetMediaSourceParent(source)
    if not known or not parent then return nil, "The section that the item plays cannot be read." end
    if reverse then return nil, "The item is reversed. Turn that off, or render it to a video first." end
    if length_s > 0 then left_s = math.min(left_s, length_s - begin_s) end
    begin_s, source = begin_s + offset_s, parent
    kind = reaper.GetMediaSourceType(source, "")
  end
  if kind ~= "VIDEO" then return nil, "The selected item has no video. Select one video item, and run this again." end
  local whole_s = reaper.GetMediaSourceLength(source)
  return reaper.GetMediaSourceFileName(source, ""), begin_s, math.min(left_s, whole_s - begin_s)
end

-- Return the part of its source that an item shows: begin and length in seconds of the source, and the seconds of the
-- project before it begins (an item may start before its source).
local function shown(item, take, rate, left_s)
  local offset_s = reaper.GetMediaItemTakeInfo_Value(take, "D_STARTOFFS")
  local length_s = reaper.GetMediaItemInfo_Value(item, "D_LENGTH")
  local lead_s = 0
  if reaper.GetMediaItemInfo_Value(item, "B_LOOPSRC") > 0 then
    offset_s = offset_s % left_s
  elseif offset_s < 0 then
    lead_s, offset_s = -offset_s / rate, 0
  end
  return offset_s, math.min((length_s - lead_s) * rate, left_s - offset_s), lead_s
end

local function selected(project)
  if reaper.CountSelectedMediaItems(project) ~= 1 then return nil, "Select one video item, and run this again." end
  local item = reaper.GetSelectedMediaItem(project, 0)
  local take = reaper.GetActiveTake(item)
  if not take or reaper.TakeIsMIDI(take) then
    return nil, "The selected item has no video. Select one video item, and run this again."
  end
  if reaper.GetTakeNumStretchMarkers(take) > 0 then
    return nil, "The item has stretch markers. Remove them, or render the item to a video first."
  end
  local video, begin_s, left_s = file_of(take)
  if not video then return nil, begin_s end
  local rate = reaper.GetMediaItemTakeInfo_Value(take, "D_PLAYRATE")
  local offset_s, duration_s, lead_s = shown(item, take, rate, left_s)
  if duration_s <= 0 then return nil, "The item lies behind the end of its video." end
  return {
    item = item, position_s = reaper.GetMediaItemInfo_Value(item, "D_POSITION"), lead_s = lead_s,
    video = video, start_s = begin_s + offset_s, duration_s = duration_s,
    rate = rate, keeps_pitch = reaper.GetMediaItemTakeInfo_Value(take, "B_PPITCH"),
  }
end

-- What is asked ------------------------------------------------------------------------------------------------------

local FIELDS = {
  { "prompts", "Sounds (; between them)", "" },
  { "negative", "Not to hear", "" },
  { "takes", "Takes", "1" },
  { "seed", "Seed", "0" },
}

-- Ask for the sounds, with what was asked last in this project. Return nil if the user cancels.
local function asked(project)
  local captions, values = {}, {}
  for number, field in ipairs(FIELDS) do
    local known, value = reaper.GetProjExtState(project, SECTION, field[1])
    captions[number], values[number] = field[2], known > 0 and job.trim(value) or field[3]
  end
  local layout = table.concat(captions, ",") .. ",extrawidth=260,separator=" .. VALUES
  local given, text = reaper.GetUserInputs(TITLE, #FIELDS, layout, table.concat(values, VALUES))
  if not given then return nil end
  local request, number = {}, 0
  for value in (text .. VALUES):gmatch("([^\n]*)\n") do
    number = number + 1
    if FIELDS[number] then request[FIELDS[number][1]] = job.trim(value) end
  end
  for _, field in ipairs(FIELDS) do
    request[field[1]] = request[field[1]] or ""
    reaper.SetProjExtState(project, SECTION, field[1], request[field[1]])
  end
  request.prompts = job.prompts(request.prompts)
  return request
end

-- Return the path of selva-generate, chosen by the user if it is not found. Return nil if the user does not know it.
local function command()
  local setting = reaper.GetExtState(SECTION, "command")
  local found = job.find_command(setting, windows, os.getenv)
  if found then return found end
  local missing = setting == "" and "selva-generate is not found." or setting .. " is not there any more."
  local how = "\n\nInstall it with\n" .. job.INSTALL .. "\n\nIf it is installed, press OK and choose it."
  if reaper.ShowMessageBox(missing .. how, TITLE, 1) ~= 1 then return nil end
  local chosen, path = reaper.GetUserFileNameForRead("", "selva-generate", "")
  if not chosen then return nil end
  reaper.SetExtState(SECTION, "command", path, true)
  return path
end

-- Where the stems go -------------------------------------------------------------------------------------------------

local function tracks_of(report)
  local tracks = {}
  for _, stem in ipairs(report.stems) do
    local source = reaper.PCM_Source_CreateFromFile(stem.file)
    if not source then error("REAPER cannot open " .. stem.file, 0) end
    if stem.take == 1 then tracks[#tracks + 1] = { name = stem.prompt, duration_s = stem.duration_s } end
    local name = stem.prompt .. ", take " .. math.floor(stem.take) .. ", seed " .. math.floor(stem.seed)
    table.insert(tracks[#tracks], { source = source, name = name })
  end
  return tracks
end

-- Return the index for the first new track and the position: those of the item, which the user may have moved.
local function place_of(project, picture)
  if not reaper.ValidatePtr2(project, picture.item, "MediaItem*") then
    return reaper.CountTracks(project), picture.position_s
  end
  local track = reaper.GetMediaItem_Track(picture.item)
  local below = math.floor(reaper.GetMediaTrackInfo_Value(track, "IP_TRACKNUMBER"))
  return below, reaper.GetMediaItemInfo_Value(picture.item, "D_POSITION")
end

local function add_track(project, index, position_s, picture, stems, notes)
  reaper.InsertTrackAtIndex(index, true)
  local track = reaper.GetTrack(project, index)
  reaper.GetSetMediaTrackInfo_String(track, "P_NAME", stems.name, true)
  local item = reaper.AddMediaItemToTrack(track)
  reaper.SetMediaItemInfo_Value(item, "D_POSITION", position_s + picture.lead_s)
  reaper.SetMediaItemInfo_Value(item, "D_LENGTH", stems.duration_s / picture.rate)
  reaper.SetMediaItemInfo_Value(item, "B_LOOPSRC", 0)
  reaper.GetSetMediaItemInfo_String(item, "P_NOTES", notes, true)
  local first
  for _, stem in ipairs(stems) do
    local take = reaper.AddTakeToMediaItem(item)
    reaper.SetMediaItemTake_Source(take, stem.source)
    reaper.SetMediaItemTakeInfo_Value(take, "D_PLAYRATE", picture.rate)
    reaper.SetMediaItemTakeInfo_Value(take, "B_PPITCH", picture.keeps_pitch)
    reaper.GetSetMediaItemTakeInfo_String(take, "P_NAME", stem.name, true)
    first = first or take
  end
  reaper.SetActiveTake(first)
end

-- Put the stems on new tracks, in one undo step. Return nil, or a line if it failed.
local function place(project, picture, report)
  local opened, tracks = pcall(tracks_of, report)
  if not opened then return tracks end
  local index, position_s = place_of(project, picture)
  reaper.Undo_BeginBlock2(project)
  reaper.PreventUIRefresh(1)
  local placed, why = pcall(function()
    for number, stems in ipairs(tracks) do
      add_track(project, index + number - 1, position_s, picture, stems, report.notice)
    end
  end)
  reaper.PreventUIRefresh(-1)
  reaper.Undo_EndBlock2(project, TITLE, -1)
  reaper.TrackList_AdjustWindows(false)
  reaper.UpdateArrange()
  reaper.Main_OnCommandEx(40047, 0, project)  -- Peaks: Build any missing peaks
  if not placed then return tostring(why) end
end

-- The run ------------------------------------------------------------------------------------------------------------

local function launch(path)
  if path:find('"', 1, true) then return false end
  local line = '/bin/sh "' .. path .. '"'
  if windows then
    line = 'powershell.exe -NoProfile -NonInteractive -ExecutionPolicy Bypass -WindowStyle Hidden -File "' .. path .. '"'
  end
  return reaper.ExecProcess(line, -2) ~= nil
end

local function draw(run, since_s)
  local text = run.cancelled and "Cancelling" or "Generating, Esc cancels"
  gfx.setfont(1, "Arial", 16)
  gfx.x, gfx.y = 12, 12
  gfx.drawstr(string.format("%s: %d s", text, math.floor(reaper.time_precise() - since_s)))
  gfx.x, gfx.y = 12, 44
  gfx.drawstr(run:said())
  gfx.update()
end

local function finish(project, picture, run, state, what)
  if state == "failed" then tell(what) end
  if state ~= "done" then return end
  local why = place(project, picture, what)
  if why then return tell(why .. "\nThe stems are in " .. run.folder) end
  local warnings = table.concat(run:lines("warning"), "\n")
  if warnings ~= "" then reaper.ShowConsoleMsg(TITLE .. "\n" .. warnings .. "\n") end
end

-- Look at the run a few times a second until it has ended. The stems wait until their project is in front.
local function follow(project, picture, run)
  local since_s, looked_s, state, what = reaper.time_precise(), 0, "running", nil
  gfx.init(TITLE, 620, 80)
  reaper.atexit(function()
    if state == "running" then run:cancel() end
  end)
  local function step()
    local key = gfx.getchar()
    if state == "running" and (key == 27 or key == -1) then run:cancel() end
    local now_s = reaper.time_precise()
    if state == "running" and now_s - looked_s >= POLL_S then
      looked_s, state, what = now_s, run:poll()
    end
    if state == "done" and not reaper.ValidatePtr2(project, project, "ReaProject*") then
      state, what = "failed", "The project was closed. The stems are in " .. run.folder
    end
    if state == "running" or state == "done" and reaper.EnumProjects(-1) ~= project then
      draw(run, since_s)
      return reaper.defer(step)
    end
    gfx.quit()
    finish(project, picture, run, state, what)
  end
  step()
end

local function main()
  local project = reaper.EnumProjects(-1)
  local picture, why = selected(project)
  if not picture then return tell(why) end
  local program = command()
  if not program then return end
  local request = asked(project)
  if not request then return end
  if #request.prompts == 0 then return tell("Name at least one sound, such as dog barking.") end
  local media = reaper.GetProjectPathEx(project, "")
  if media == "" then return tell("Save the project first: the stems go into its media folder.") end
  request.out = job.new_folder(media .. separator .. "SelVA", windows)
  request.video, request.start_s, request.duration_s = picture.video, picture.start_s, picture.duration_s
  reaper.RecursiveCreateDirectory(request.out, 0)
  local run, fault = job.start(program, request, windows, launch, reaper.time_precise)
  if not run then return tell(fault) end
  follow(project, picture, run)
end

main()
