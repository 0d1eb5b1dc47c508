-- wrk … -- FILE: asks for the paths in FILE, one a line, in random order.

local seed = 0
function setup(thread)
   seed = seed + 1
   thread:set("seed", seed)
end

local requests = {}
function init(args)
   math.randomseed(seed)
   for path in io.lines(args[1]) do
      requests[#requests + 1] = wrk.format("GET", path)
   end
end

function request()
   return requests[math.random(#requests)]
end
