-- Makes a session whose one track has the plug-in, lets it generate, and saves. Run by ardour7-lua with A_FOLDER, A_NAME,
-- A_RATE, A_BLOCK, and the frames A_FROM and A_TO of the session's range.
local number = function(name) return tonumber(os.getenv(name)) end
local pause = function(ms) ARDOUR.LuaAPI.usleep(ms * 1000) end
local STATUS, READY = 2, 2

local backend = AudioEngine:set_backend("None (Dummy)", "Unit-Test", "")
backend:set_sample_rate(number("A_RATE"))
backend:set_buffer_size(number("A_BLOCK"))
AudioEngine:start()
local session = create_session(os.getenv("A_FOLDER"), os.getenv("A_NAME"), number("A_RATE"))
session:new_audio_track(1, 2, nil, 1, "stem", ARDOUR.PresentationInfo.max_order, ARDOUR.TrackMode.Normal, true)
local track
for route in session:get_routes():iter() do
  if route:name() == "stem" then track = route:to_track() end
end
local plugin = ARDOUR.LuaAPI.new_plugin(session, "urn:selva-deploy:stem", ARDOUR.PluginType.LV2, "")
assert(not plugin:isnil(), "Ardour does not find the plug-in")
assert(track:add_processor_by_index(plugin, 0, nil, true) == 0)
pause(500)
ARDOUR.LuaAPI.set_processor_param(plugin, 0, 1)
local status
for _ = 1, 600 do
  status = ARDOUR.LuaAPI.get_processor_param(plugin, STATUS, true)
  if status >= READY then break end
  pause(50)
end
print("status", status)

-- A session has a range once something was recorded. What was recorded is taken out again.
track:rec_enable_control():set_value(1, PBD.GroupControlDisposition.NoGroup)
session:maybe_enable_record(true)
pause(200)
session:request_roll(ARDOUR.TransportRequestSource.TRS_UI)
pause(600)
session:request_stop(false, false, ARDOUR.TransportRequestSource.TRS_UI)
for _ = 1, 100 do
  if session:transport_stopped() then break end
  pause(20)
end
pause(300)
for region in track:playlist():region_list():iter() do track:playlist():remove_region(region) end
local range = session:locations():session_range_location()
range:set(Temporal.timepos_t(number("A_FROM")), Temporal.timepos_t(number("A_TO")))
session:save_state("", false, false, false, false, false)
close_session()
