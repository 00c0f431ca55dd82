// Sets the theme before anything is drawn: what the address says, else what was chosen last, else the system's.
"use strict";
(() => {
  const asked = new URL(location.href).searchParams.get("theme");
  let kept = null;
  try {
    kept = localStorage.getItem("theme");
  } catch {
    // Storage is switched off: the address and the system decide.
  }
  const theme = asked || kept;
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
