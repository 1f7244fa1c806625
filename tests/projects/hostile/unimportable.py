import nothing_of_this_name

graph = nothing_of_this_name
