// The C++ part of normlab as a module of Python; one file is compiled, as torch's headers take most of the time.

#include "planes.h"
#include "positions.h"

// By its own name, not TORCH_EXTENSION_NAME, to which torch adds the number of the build in its process.
PYBIND11_MODULE(normlab_native, m) {
  m.def("set_up", &set_up);

  auto of_planes = m.def_submodule("planes");
  py::class_<planes::PlanesPlan, std::shared_ptr<planes::PlanesPlan>>(of_planes, "Plan", py::module_local());
  of_planes.def("set_up", &planes::set_up);
  of_planes.def("make_plan", &planes::make_plan);
  of_planes.def("normalize", &planes::normalize);

  auto of_positions = m.def_submodule("positions");
  py::class_<positions::PositionsPlan, std::shared_ptr<positions::PositionsPlan>>(of_positions, "Plan",
                                                                                  py::module_local());
  py::enum_<positions::Form>(of_positions, "Form", py::module_local())
      .value("ROWS", positions::Form::kRows)
      .value("COLUMNS", positions::Form::kColumns)
      .value("LAST", positions::Form::kLast);
  of_positions.def("set_up", &positions::set_up);
  of_positions.def("make_plan", &positions::make_plan);
  of_positions.def("normalize", &positions::normalize);
}
