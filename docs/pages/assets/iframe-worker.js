// Browsers start no Worker from a file:// page. There the theme's search runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const inside = frame.contentWindow
      const script = inside.document.createElement("script")
      this.inside = inside
      this.loaded = new Promise(resolve => (script.onload = resolve))
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      inside.importScripts = (...urls) =>
        Promise.all(
          urls.map(
            each =>
              new Promise((resolve, reject) => {
                const part = inside.document.createElement("script")
                Object.assign(part, { src: each, onload: resolve, onerror: reject })
                inside.document.body.append(part)
              })
          )
        )
      script.src = new URL(url, location.href)
      inside.document.body.append(script)
    }

    postMessage(data) {
      this.loaded.then(() =>
        this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data }))
      )
    }
  }
}
