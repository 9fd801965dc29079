-- Plays DaVinci Resolve: one project behind the published scripting API, checked call by call.
-- Returns the world, through which a test sets things up and looks at what the script did.

local strict, wait, make_folder, script_folder = ...

-- As in the README.txt of Resolve 21's "Developer/Scripting", with types written before the names of arguments.
local PUBLISHED = {
  Resolve = "ProjectManager Resolve:GetProjectManager()",
  ProjectManager = "Project ProjectManager:GetCurrentProject()",
  Project = [[
Timeline Project:GetCurrentTimeline()
MediaPool Project:GetMediaPool()
Bool Project:SetCurrentTimeline(Timeline timeline)
]],
  Timeline = [[
Bool Timeline:AddMarker(number frameId, string color, string name, string note, number duration, optional string customData)
Bool Timeline:AddTrack(string trackType, string subTrackType)
Bool Timeline:DeleteMarkerAtFrame(number frameNum)
TimelineItem Timeline:GetCurrentVideoItem()
table Timeline:GetMarkers()
table Timeline:GetMarkInOut()
string Timeline:GetSetting(string settingName)
int Timeline:GetStartFrame()
int Timeline:GetTrackCount(string trackType)
string Timeline:GetUniqueId()
Bool Timeline:SetTrackEnable(string trackType, integer trackIndex, boolean enabled)
Bool Timeline:SetTrackName(string trackType, integer trackIndex, string name)
]],
  TimelineItem = [[
int TimelineItem:GetDuration(optional boolean subframe_precision)
int TimelineItem:GetLeftOffset(optional boolean subframe_precision)
MediaPoolItem TimelineItem:GetMediaPoolItem()
int TimelineItem:GetSourceEndFrame()
int TimelineItem:GetSourceStartFrame()
int TimelineItem:GetStart(optional boolean subframe_precision)
]],
  MediaPool = [[
Folder MediaPool:AddSubFolder(Folder folder, string name)
table MediaPool:AppendToTimeline(table clipInfos)
Folder MediaPool:GetCurrentFolder()
Folder MediaPool:GetRootFolder()
table MediaPool:ImportMedia(table items)
Bool MediaPool:SetCurrentFolder(Folder folder)
]],
  MediaPoolItem = "string MediaPoolItem:GetClipProperty(string propertyName)",
  Folder = [[
string Folder:GetName()
table Folder:GetSubFolderList()
]],
  fu = "string fu:MapPath(string path)",
}
local COLOURS = { Purple = true, Yellow = true, Red = true, Green = true }
local CLIP_INFO = {
  mediaPoolItem = "MediaPoolItem", startFrame = "number", endFrame = "number", mediaType = "number",
  trackIndex = "number", recordFrame = "number",
}

local world = { printed = {}, tracks = { {} }, markers = {}, imported = {}, refuses = {}, front = 1 }
local methods = {}

local function object(kind, fields)
  return setmetatable({ kind = kind, is = fields or {} }, { __index = methods[kind] })
end

local function publish(kind, functions)
  local with_self = {}
  for name, f in pairs(functions) do
    with_self[name] = function(self, ...)
      if type(self) ~= "table" or self.kind ~= kind then error(kind .. ":" .. name .. " needs a colon", 3) end
      return f(self.is, ...)
    end
  end
  methods[kind] = strict.table(kind, PUBLISHED[kind], with_self, kind)
end

local function audio(kind)
  assert(kind == "audio", kind)
end

-- Set up before the objects, so that they find their methods.
publish("MediaPoolItem", {
  GetClipProperty = function(clip, name)
    return assert(({ ["File Path"] = clip.file, FPS = clip.fps })[name], name .. " is no property")
  end,
})
publish("Folder", {
  GetName = function(folder) return folder.name end,
  GetSubFolderList = function(folder) return folder.folders end,
})
publish("TimelineItem", {
  GetDuration = function(item) return item.duration end,
  GetLeftOffset = function(item) return item.offset end,
  GetMediaPoolItem = function(item) return item.clip end,
  GetSourceEndFrame = function(item) return item.source_end end,
  GetSourceStartFrame = function(item) return item.source_start end,
  GetStart = function(item) return item.start end,
})
publish("Timeline", {
  AddMarker = function(_, frame, colour, name, note, duration)
    assert(COLOURS[colour], colour)
    if world.markers[frame] then return false end
    world.markers[frame] = { color = colour, name = name, note = note, duration = duration, customData = "" }
    return true
  end,
  AddTrack = function(_, kind, sub_kind)
    audio(kind)
    assert(sub_kind == "mono", sub_kind)
    if world.refuses.track then return false end
    world.tracks[#world.tracks + 1] = { enabled = true }
    return true
  end,
  DeleteMarkerAtFrame = function(_, frame)
    world.markers[frame] = nil
    return true
  end,
  GetCurrentVideoItem = function() return world.item end,
  GetMarkers = function() return world.markers end,
  GetMarkInOut = function() return world.marks or {} end,
  GetSetting = function(_, name)
    assert(name == "timelineFrameRate", name)
    return world.rate
  end,
  GetStartFrame = function() return world.first end,
  GetTrackCount = function(_, kind)
    audio(kind)
    return #world.tracks
  end,
  GetUniqueId = function(timeline) return timeline.id end,
  SetTrackEnable = function(_, kind, index, enabled)
    audio(kind)
    world.tracks[index].enabled = enabled
    return true
  end,
  SetTrackName = function(_, kind, index, name)
    audio(kind)
    world.tracks[index].name = name
    return true
  end,
})
-- Resolve counts a sound file at 24 frames a second, and leaves out the frame at which a clip ends.
publish("MediaPool", {
  AddSubFolder = function(_, parent, name)
    local folder = object("Folder", { name = name, folders = {} })
    table.insert(parent.is.folders, folder)
    return folder
  end,
  AppendToTimeline = function(_, infos)
    assert(world.front == 1, "the clip would go to another timeline")
    local placed = {}
    for number, info in ipairs(infos) do
      for name, kind in pairs(CLIP_INFO) do strict.check("clipInfo." .. name, { { wanted = kind, name = name } }, info[name]) end
      for name in pairs(info) do assert(CLIP_INFO[name], name .. " is not published") end
      assert(info.mediaType == 2, "audio only")
      local frames = (info.endFrame - info.startFrame) / tonumber(info.mediaPoolItem.is.fps) * tonumber(world.rate:match("[%d.]+"))
      local start = info.recordFrame + (world.refuses.place or 0)
      local item = { clip = info.mediaPoolItem, start = start, duration = math.floor(frames + 0.5) }
      table.insert(world.tracks[info.trackIndex], item)
      placed[number] = object("TimelineItem", item)
    end
    return placed
  end,
  GetCurrentFolder = function() return world.folder end,
  GetRootFolder = function() return world.root end,
  ImportMedia = function(_, files)
    if world.refuses.import then return nil end
    local clips = {}
    for number, file in ipairs(files) do
      world.imported[#world.imported + 1] = world.folder.is.name .. ": " .. file
      clips[#files + 1 - number] = object("MediaPoolItem", { file = file, fps = "24" })  -- in no promised order
    end
    return clips
  end,
  SetCurrentFolder = function(_, folder)
    world.folder = folder
    return true
  end,
})
local pool = object("MediaPool")
local timelines = {}
publish("Project", {
  GetCurrentTimeline = function() return timelines[world.front] end,
  GetMediaPool = function() return pool end,
  SetCurrentTimeline = function(_, timeline)
    world.front = timeline.is.id == "one" and 1 or 2
    return true
  end,
})
local project = object("Project")
timelines[1], timelines[2] = object("Timeline", { id = "one" }), object("Timeline", { id = "two" })
publish("ProjectManager", { GetCurrentProject = function() return project end })
local manager = object("ProjectManager")
publish("Resolve", { GetProjectManager = function() return manager end })
publish("fu", {
  MapPath = function(_, path)
    return (path:gsub("^Scripts:Utility/SelVA/", script_folder .. "/"))
  end,
})

world.root = object("Folder", { name = "Master", folders = {} })
world.folder = world.root

-- Put the playhead on a clip. Frames and offset are those of the timeline.
function world.clip(file, fps, start, duration, offset, source_start, source_end)
  local clip = file and object("MediaPoolItem", { file = file, fps = fps })
  world.item = object("TimelineItem", {
    clip = clip, start = start, duration = duration, offset = offset,
    source_start = source_start, source_end = source_end,
  })
end

fu = object("fu")
bmd = { wait = function(seconds) wait(seconds) end, createdir = function(path) make_folder(path) end }
function Resolve() return object("Resolve") end
function print(text) world.printed[#world.printed + 1] = text end
debug = nil  -- as in Resolve
return world
