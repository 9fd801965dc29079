-- Plays REAPER: a project of tracks, items and takes behind the published API of ReaScript, checked call by call.
-- Returns the world, through which a test sets things up and looks at what the script did.

local strict, execute, make_folder, clock, script = ...

-- As in REAPER's "ReaScript documentation" (Help menu, v7). What it calls a buffer argument up to v6 is optional here.
local PUBLISHED = [[
MediaItem reaper.AddMediaItemToTrack(MediaTrack tr)
MediaItem_Take reaper.AddTakeToMediaItem(MediaItem item)
reaper.atexit(function f)
integer reaper.CountSelectedMediaItems(ReaProject proj)
integer reaper.CountTracks(ReaProject proj)
reaper.defer(function f)
ReaProject retval, string projfn = reaper.EnumProjects(integer idx)
string reaper.ExecProcess(string cmdline, integer timeoutmsec)
boolean reaper.file_exists(string path)
boolean is_new_value, string filename = reaper.get_action_context()
MediaItem_Take reaper.GetActiveTake(MediaItem item)
string reaper.GetExtState(string section, string key)
number reaper.GetMediaItemInfo_Value(MediaItem item, string parmname)
number reaper.GetMediaItemTakeInfo_Value(MediaItem_Take take, string parmname)
PCM_source reaper.GetMediaItemTake_Source(MediaItem_Take take)
MediaTrack reaper.GetMediaItem_Track(MediaItem item)
string filenamebuf = reaper.GetMediaSourceFileName(PCM_source source, optional string filenamebuf)
number retval, boolean lengthIsQN = reaper.GetMediaSourceLength(PCM_source source)
PCM_source reaper.GetMediaSourceParent(PCM_source src)
string typebuf = reaper.GetMediaSourceType(PCM_source source, optional string typebuf)
number reaper.GetMediaTrackInfo_Value(MediaTrack tr, string parmname)
string reaper.GetOS()
integer retval, string val = reaper.GetProjExtState(ReaProject proj, string extname, string key)
string buf = reaper.GetProjectPathEx(ReaProject proj, optional string buf)
MediaItem reaper.GetSelectedMediaItem(ReaProject proj, integer selitem)
boolean retval, string s = reaper.GetSetMediaItemInfo_String(MediaItem item, string parmname, string s, boolean set)
boolean retval, string s = reaper.GetSetMediaItemTakeInfo_String(MediaItem_Take tk, string parmname, string s, boolean set)
boolean retval, string s = reaper.GetSetMediaTrackInfo_String(MediaTrack tr, string parmname, string s, boolean set)
integer reaper.GetTakeNumStretchMarkers(MediaItem_Take take)
MediaTrack reaper.GetTrack(ReaProject proj, integer trackidx)
boolean retval, string filenameNeed4096 = reaper.GetUserFileNameForRead(string filenameNeed4096, string title, string defext)
boolean retval, string retvals_csv = reaper.GetUserInputs(string title, integer num_inputs, string captions_csv, string retvals_csv)
reaper.InsertTrackAtIndex(integer idx, boolean wantDefaults)
reaper.Main_OnCommandEx(integer command, integer flag, ReaProject proj)
PCM_source reaper.PCM_Source_CreateFromFile(string filename)
boolean retval, number offs, number len, boolean rev = reaper.PCM_Source_GetSectionInfo(PCM_source src)
reaper.PreventUIRefresh(integer prevent_count)
integer reaper.RecursiveCreateDirectory(string path, integer ignored)
reaper.SetActiveTake(MediaItem_Take take)
reaper.SetExtState(string section, string key, string value, boolean persist)
boolean reaper.SetMediaItemInfo_Value(MediaItem item, string parmname, number newvalue)
boolean reaper.SetMediaItemTakeInfo_Value(MediaItem_Take take, string parmname, number newvalue)
boolean reaper.SetMediaItemTake_Source(MediaItem_Take take, PCM_source source)
integer reaper.SetProjExtState(ReaProject proj, string extname, string key, string value)
reaper.ShowConsoleMsg(string msg)
integer reaper.ShowMessageBox(string msg, string title, integer type)
boolean reaper.TakeIsMIDI(MediaItem_Take take)
number reaper.time_precise()
reaper.TrackList_AdjustWindows(boolean isMinor)
reaper.Undo_BeginBlock2(ReaProject proj)
reaper.Undo_EndBlock2(ReaProject proj, string descchange, integer extraflags)
reaper.UpdateArrange()
boolean reaper.ValidatePtr2(ReaProject proj, identifier pointer, string ctypename)
]]
local PUBLISHED_GFX = [[
gfx.drawstr(string str)
integer gfx.getchar()
gfx.init(string name, optional integer width, optional integer height, optional integer dockstate)
gfx.quit()
gfx.setfont(integer idx, optional string fontface, optional integer sz)
gfx.update()
]]
-- Names of values that a script may read or set, as published for each function.
local ITEM = { D_POSITION = 0, D_LENGTH = 0, B_LOOPSRC = 1 }
local TAKE = { D_STARTOFFS = 0, D_PLAYRATE = 1, B_PPITCH = 1 }

local function object(kind, fields)
  fields.kind = kind
  return fields
end

local world = {
  os = "Other", project = object("ReaProject", { open = true }), tracks = {}, selected = {}, media = "",
  messages = {}, console = {}, drawn = {}, keys = {}, undo = {}, deferred = {}, commands = {}, refresh = 0,
  settings = {}, project_settings = {}, answers = {}, window = false, in_block = false, press = 1,
}
world.front = world.project

function world.source(kind, file, length_s, section)
  return object("PCM_source", { type = kind, file = file, length_s = length_s, section = section })
end

function world.item(values, take_values, source, track_name)
  local track = object("MediaTrack", { name = track_name or "", items = {} })
  world.tracks[#world.tracks + 1] = track
  local item = object("MediaItem", { track = track, values = values, takes = {}, notes = "" })
  track.items[1] = item
  if source then
    item.takes[1] = object("MediaItem_Take", { item = item, values = take_values, source = source, markers = 0 })
    item.active = item.takes[1]
  end
  world.selected[#world.selected + 1] = item
  return item
end

-- Do what is deferred once. Return whether there is more.
function world.turn()
  local now = world.deferred
  world.deferred = {}
  for _, f in ipairs(now) do f() end
  return #world.deferred > 0
end

-- REAPER ends the script.
function world.quit()
  world.deferred = {}
  if world.at_exit then world.at_exit() end
end

local function changing()
  if not world.in_block then error("the project is changed outside an undo block", 3) end
end

local function value(values, names, name, what)
  if names[name] == nil then error(name .. " is no value of a " .. what, 3) end
  return values[name] or names[name]
end

local function named(target, name, text, set, field)
  if set then
    changing()
    target[field] = text
  end
  return true, target[field]
end

local functions = {
  AddMediaItemToTrack = function(track)
    changing()
    local item = object("MediaItem", { track = track, values = {}, takes = {}, notes = "" })
    track.items[#track.items + 1] = item
    return item
  end,
  AddTakeToMediaItem = function(item)
    changing()
    local take = object("MediaItem_Take", { item = item, values = {}, markers = 0 })
    item.takes[#item.takes + 1] = take
    return take
  end,
  atexit = function(f) world.at_exit = f end,
  CountSelectedMediaItems = function() return #world.selected end,
  CountTracks = function() return #world.tracks end,
  defer = function(f) world.deferred[#world.deferred + 1] = f end,
  EnumProjects = function(index)
    assert(index == -1, "only the project in front")
    return world.front, ""
  end,
  ExecProcess = function(line, timeout_ms)
    assert(timeout_ms == -1 or timeout_ms == -2, "ExecProcess would wait and stop the host")
    return execute(line)
  end,
  file_exists = function(path)
    local file = io.open(path)
    if file then file:close() end
    return file ~= nil
  end,
  get_action_context = function() return false, script, 0, 0, -1, -1, -1, "" end,
  GetActiveTake = function(item) return item.active end,
  GetExtState = function(section, key) return world.settings[section .. "/" .. key] or "" end,
  GetMediaItemInfo_Value = function(item, name) return value(item.values, ITEM, name, "MediaItem") + 0.0 end,
  GetMediaItemTakeInfo_Value = function(take, name) return value(take.values, TAKE, name, "take") + 0.0 end,
  GetMediaItemTake_Source = function(take) return take.source end,
  GetMediaItem_Track = function(item) return item.track end,
  GetMediaSourceFileName = function(source) return source.section and "" or source.file end,
  GetMediaSourceLength = function(source) return source.length_s + 0.0, false end,
  GetMediaSourceParent = function(source) return source.section and source.section.parent end,
  GetMediaSourceType = function(source) return source.type end,
  GetMediaTrackInfo_Value = function(track, name)
    assert(name == "IP_TRACKNUMBER", name)
    for number, other in ipairs(world.tracks) do
      if other == track then return number + 0.0 end
    end
  end,
  GetOS = function() return world.os end,
  GetProjExtState = function(_, section, key)
    local text = world.project_settings[section .. "/" .. key] or ""
    return #text, text
  end,
  GetProjectPathEx = function() return world.media end,
  GetSelectedMediaItem = function(_, index) return world.selected[index + 1] end,
  GetSetMediaItemInfo_String = function(item, name, text, set)
    assert(name == "P_NOTES", name)
    return named(item, name, text, set, "notes")
  end,
  GetSetMediaItemTakeInfo_String = function(take, name, text, set)
    assert(name == "P_NAME", name)
    return named(take, name, text, set, "name")
  end,
  GetSetMediaTrackInfo_String = function(track, name, text, set)
    assert(name == "P_NAME", name)
    return named(track, name, text, set, "name")
  end,
  GetTakeNumStretchMarkers = function(take) return take.markers end,
  GetTrack = function(_, index) return world.tracks[index + 1] end,
  GetUserFileNameForRead = function() return world.chosen ~= nil, world.chosen or "" end,
  GetUserInputs = function(title, number, captions, values)
    world.asked = { title = title, number = number, captions = captions, values = values }
    if world.answers == false then return false, values end
    return true, table.concat(world.answers, captions:match("separator=(.)"))
  end,
  InsertTrackAtIndex = function(index)
    changing()
    assert(world.front == world.project, "the track would go into another project")
    table.insert(world.tracks, index + 1, object("MediaTrack", { name = "", items = {} }))
  end,
  Main_OnCommandEx = function(command) world.commands[#world.commands + 1] = command end,
  PCM_Source_CreateFromFile = function(file)
    local found = io.open(file)
    if not found then return nil end
    found:close()
    return world.source("WAVE", file, 1)
  end,
  PCM_Source_GetSectionInfo = function(source)
    local section = source.section
    if not section then return false, 0.0, 0.0, false end
    return true, section.offset_s + 0.0, source.length_s + 0.0, section.reverse or false
  end,
  PreventUIRefresh = function(count) world.refresh = world.refresh + count end,
  RecursiveCreateDirectory = function(path)
    make_folder(path)
    return 1
  end,
  SetActiveTake = function(take) take.item.active = take end,
  SetExtState = function(section, key, text) world.settings[section .. "/" .. key] = text end,
  SetMediaItemInfo_Value = function(item, name, new)
    changing()
    value(item.values, ITEM, name, "MediaItem")
    item.values[name] = new
    return true
  end,
  SetMediaItemTakeInfo_Value = function(take, name, new)
    changing()
    value(take.values, TAKE, name, "take")
    take.values[name] = new
    return true
  end,
  SetMediaItemTake_Source = function(take, source)
    changing()
    take.source = source
    return true
  end,
  SetProjExtState = function(_, section, key, text)
    world.project_settings[section .. "/" .. key] = text
    return 1
  end,
  ShowConsoleMsg = function(text) world.console[#world.console + 1] = text end,
  ShowMessageBox = function(text)
    world.messages[#world.messages + 1] = text
    return world.press
  end,
  TakeIsMIDI = function(take) return take.source.type == "MIDI" end,
  time_precise = function() return clock() end,
  TrackList_AdjustWindows = function() end,
  Undo_BeginBlock2 = function()
    assert(not world.in_block, "an undo block in an undo block")
    world.in_block, world.before = true, { table.unpack(world.tracks) }
  end,
  Undo_EndBlock2 = function(_, name)
    assert(world.in_block, "no undo block was begun")
    world.in_block = false
    world.undo[#world.undo + 1] = { name = name, tracks = world.before }
  end,
  UpdateArrange = function() end,
  ValidatePtr2 = function(_, pointer, name)
    if name == "ReaProject*" then return pointer.open end
    return pointer.kind .. "*" == name and not pointer.gone
  end,
}

local gfx_functions = {
  drawstr = function(text) world.drawn[#world.drawn + 1] = text end,
  getchar = function() return table.remove(world.keys, 1) or 0 end,
  init = function() world.window = true end,
  quit = function() world.window = false end,
  setfont = function() end,
  update = function() end,
}

reaper = strict.table("reaper", PUBLISHED, functions)
gfx = strict.table("gfx", PUBLISHED_GFX, gfx_functions)
gfx.x, gfx.y = 0, 0
return world
